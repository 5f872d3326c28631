"""The commands `publish`, `fetch` and `verify-artifact`.

Knows the terminal; the work is done in `publishing/`, imported when a command is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..console import say
from ..errors import InputError
from ..hub import SCHEME
from .paths import expand

Force = Annotated[bool, typer.Option("--force", help="Replace an existing artifact.")]


def publish(
    artifact: Annotated[
        Path, typer.Argument(parser=expand, metavar="ARTIFACT", help="An artifact that has passed verify.")
    ],
    to: Annotated[str, typer.Option("--to", metavar="DIR|hf://ORG/NAME", help="Where to publish it.")],
    licence: Annotated[
        Path | None,
        typer.Option(
            "--license", parser=expand, metavar="FILE", help="The checkpoint's licence, if the artifact has none."
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="If the repository does not exist yet, create it as private.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and list the files, without writing or uploading.")
    ] = False,
    sign: Annotated[bool, typer.Option("--sign", help="Sign the provenance with sigstore.")] = False,
    force: Force = False,
    demo: Annotated[
        bool, typer.Option("--demo", help="Include index.html, a page that runs the artifact in the browser.")
    ] = False,
) -> None:
    """Publish a verified artifact with its model card, evidence and provenance.

    Fails unless parity.json passed and belongs to exactly these files. An upload is a single commit: if it is
    interrupted, the repository stays as it was, and the next attempt uploads only the missing files.

    Example: `qwen3vl-export publish artifacts/tiny --to hf://me/tiny --dry-run`

    Example: `qwen3vl-export publish artifacts/tiny --to site --demo`
    """
    from ..publishing import publish as publish_artifact

    publish_artifact(
        artifact,
        expand_target(to),
        licence=licence,
        private=private,
        dry_run=dry_run,
        signed=sign,
        force=force,
        demo=demo,
        log=say,
    )


def fetch(
    source: Annotated[
        str,
        typer.Argument(metavar="hf://ORG/NAME|DIR", help="A published artifact; append @REVISION for a revision."),
    ],
    out: Annotated[
        Path | None, typer.Option(parser=expand, metavar="DIR", help="Output directory. [default: artifacts/NAME]")
    ] = None,
    force: Force = False,
) -> None:
    """Download a published artifact and check it: hashes, graph contract, evidence, provenance.

    Example: `qwen3vl-export fetch hf://me/tiny`
    """
    from ..publishing import fetch as fetch_artifact

    fetch_artifact(expand_target(source), out, force, log=say)


def verify_artifact(
    artifact: Annotated[
        Path, typer.Argument(parser=expand, metavar="ARTIFACT", help="An artifact directory, published or not.")
    ],
    identity: Annotated[
        str | None, typer.Option(metavar="NAME", help="The expected signer: an e-mail address or a CI workflow's URL.")
    ] = None,
    issuer: Annotated[
        str | None, typer.Option(metavar="URL", help="The OpenID Connect issuer of that identity.")
    ] = None,
) -> None:
    """Check an artifact offline: files, graph contract, evidence, provenance and, with --identity, the signature.

    Example: `qwen3vl-export verify-artifact artifacts/tiny`
    """
    from ..publishing.verify_artifact import Signer
    from ..publishing.verify_artifact import verify_artifact as check

    if (identity is None) != (issuer is None):
        raise InputError(
            "a signature is checked against an identity and its issuer", "Pass both --identity and --issuer"
        )
    for line in check(artifact, Signer(identity, issuer) if identity and issuer else None):
        say(line)


def expand_target(text: str) -> str:
    """A repository as it is, a directory with `~` replaced."""
    return text if text.startswith(SCHEME) else str(expand(text))
