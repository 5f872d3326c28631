"""The commands `publish`, `fetch` and `verify-artifact`.

Knows the terminal; the work is done in `publishing/`, imported when a command is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..console import say
from ..errors import InputError

Force = Annotated[bool, typer.Option("--force", help="Replace the artifact that is already there.")]


def publish(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact that verify has proven.")],
    to: Annotated[str, typer.Option("--to", metavar="DIR|hf://ORG/NAME", help="Where to publish it.")],
    licence: Annotated[
        Path | None,
        typer.Option("--license", metavar="FILE", help="The checkpoint's licence, if the artifact has none."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="A repository that has to be made is private.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and list everything, send and write nothing.")
    ] = False,
    sign: Annotated[bool, typer.Option("--sign", help="Sign the provenance with sigstore.")] = False,
    force: Force = False,
    demo: Annotated[bool, typer.Option("--demo", help="Also the page that asks it in a browser, index.html.")] = False,
) -> None:
    """Publish a proven artifact with its model card, evidence and provenance.

    Refuses unless parity.json passes and is about this very artifact. An upload is one commit: a broken one leaves the
    repository as it was, and the next try sends only what has not arrived.

    Example: `qwen3vl-export publish artifacts/tiny --to hf://me/tiny --dry-run`

    Example: `qwen3vl-export publish artifacts/tiny --to site --demo`
    """
    from ..publishing import publish as publish_artifact

    publish_artifact(
        artifact, to, licence=licence, private=private, dry_run=dry_run, signed=sign, force=force, demo=demo, log=say
    )


def fetch(
    source: Annotated[
        str, typer.Argument(metavar="hf://ORG/NAME|DIR", help="A published artifact; @REVISION is possible.")
    ],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write; artifacts/NAME unless said.")] = None,
    force: Force = False,
) -> None:
    """Get a published artifact and check every file of it: hashes, graph contract, evidence, provenance.

    Example: `qwen3vl-export fetch hf://me/tiny`
    """
    from ..publishing import fetch as fetch_artifact

    fetch_artifact(source, out, force, log=say)


def verify_artifact(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact directory, published or not.")],
    identity: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who must have signed it: an e-mail address or a CI run.")
    ] = None,
    issuer: Annotated[str | None, typer.Option(metavar="URL", help="Who vouches for that identity.")] = None,
) -> None:
    """Check an artifact offline: files, graph contract, evidence, provenance and, with --identity, the signature.

    Example: `qwen3vl-export verify-artifact artifacts/tiny`
    """
    from ..publishing.verify_artifact import Signer
    from ..publishing.verify_artifact import verify_artifact as check

    if (identity is None) != (issuer is None):
        raise InputError("a signature is checked against an identity and its issuer", "Give --identity and --issuer")
    for line in check(artifact, Signer(identity, issuer) if identity and issuer else None):
        say(line)
