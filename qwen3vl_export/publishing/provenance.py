"""Provenance of an artifact: an in-toto statement with SLSA provenance about every published file, and its signature.

The statement is made from the manifest alone and has no date. sigstore signs it, if installed (`pip install sigstore`);
it opens a browser or uses the identity of a CI run, and this module never handles keys.
Formats: https://in-toto.io/Statement/v1, https://slsa.dev/provenance/v1
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..artifact import SIGNATURE, STATEMENT, Artifact
from ..errors import PublishError

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:qwen3vl-export:build:v1"


def statement(artifact: Artifact, digests: Mapping[str, str]) -> dict[str, Any]:
    """The statement.

    Args:
        digests: sha256 of every published file except the statement and its signature.
    """
    manifest = artifact.manifest
    materials = [
        {"name": f"{source['source']}@{source['revision']}/{name}", "digest": {"sha256": digest}}
        for source in (manifest.checkpoint, *manifest.checkpoint.get("adapters", []))
        for name, digest in sorted(source["files"].items())
    ]
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(digests.items())],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"recipe": manifest.recipe},
                "internalParameters": {"tools": manifest.tools},
                "resolvedDependencies": materials,
            },
            "runDetails": {"builder": {"id": f"pkg:pypi/qwen3vl-export@{manifest.tools['qwen3vl-export']}"}},
        },
    }


def subjects(path: Path) -> dict[str, str]:
    """The sha256 of every file in a statement, by name.

    Raises:
        PublishError: it is no such statement.
    """
    try:
        values = json.loads(path.read_text("utf-8"))
        if (values["_type"], values["predicateType"]) != (STATEMENT_TYPE, PREDICATE_TYPE):
            raise ValueError
        return {subject["name"]: subject["digest"]["sha256"] for subject in values["subject"]}
    except (ValueError, KeyError, TypeError):
        raise PublishError(f"{path}: is not an in-toto statement with SLSA provenance", "Publish again") from None


def sign(directory: Path) -> None:
    """Sign the statement with sigstore; writes the bundle beside it.

    Raises:
        PublishError: sigstore is not installed, or did not sign.
    """
    run_sigstore("sign", "--bundle", str(directory / SIGNATURE), str(directory / STATEMENT))


def check_signature(directory: Path, identity: str, issuer: str) -> None:
    """Check the bundle against the statement, without the network.

    Raises:
        PublishError: sigstore is not installed, or the signature is not that identity's.
    """
    options = ["--bundle", str(directory / SIGNATURE), "--cert-identity", identity, "--cert-oidc-issuer", issuer]
    run_sigstore("verify", "identity", "--offline", *options, str(directory / STATEMENT))


def run_sigstore(*arguments: str) -> None:
    if importlib.util.find_spec("sigstore") is None:
        raise PublishError("signatures need sigstore, which is not installed", "Install it: pip install sigstore")
    process = subprocess.run([sys.executable, "-m", "sigstore", *arguments], capture_output=True, text=True)
    if process.returncode:
        lines = (process.stderr or process.stdout).strip().splitlines() or ["no message"]
        raise PublishError(f"sigstore {arguments[0]} failed ({lines[-1].strip()})", "See: python -m sigstore --help")
