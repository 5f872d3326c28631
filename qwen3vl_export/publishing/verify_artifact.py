"""`verify-artifact`: every check of an artifact that needs neither a network nor torch nor the checkpoint.

Files against the manifest, the manifest against this version's graph contract, the parity evidence against the
manifest, and, where the artifact was published, every file against the provenance statement and its signature.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from ..artifact import SIGNATURE, STATEMENT, check_files, lies_inside, open_artifact
from ..errors import ArtifactError, PublishError
from ..evidence import Evidence
from ..hash_cache import sha256_file
from ..manifest import MANIFEST
from ..replaceable import artifact_names, file_names
from ..runtime.external import check_graphs
from .evidence import passing_evidence
from .provenance import check_signature, subjects

NOT_FETCHED = (".git*", ".cache")  # what tools that clone and download leave beside an artifact's files


@dataclass(frozen=True)
class Signer:
    """The required signer: the identity in the certificate, and its issuer."""

    identity: str
    issuer: str


def verify_artifact(root: Path, signer: Signer | None = None) -> Iterator[str]:
    """Check everything; yields a line for each check that passes.

    Args:
        signer: also check the signature, offline.

    Raises:
        Qwen3VLExportError: the first check that fails.
    """
    artifact = open_artifact(root, check=False)
    digests = check_files(artifact, sha256_file)
    check_graphs(artifact)
    check_strangers(root)
    yield f"files       {len(artifact.manifest.files)} are as {MANIFEST} says"
    for precision in artifact.every_precision:
        suffix = f" in {precision.precision}" if precision.precision else ""
        graphs = ", ".join(precision.manifest.graphs)
        yield f"contract    {graphs}{suffix}: inputs and outputs as this version declares them"
        yield f"parity      {describe_proof(passing_evidence(precision))}{suffix}"
    if not (root / STATEMENT).is_file():
        yield "provenance  none: this artifact was not published"
    else:
        yield f"provenance  {check_statement(root, digests)} files are as {STATEMENT} says"
    if signer is not None:
        if not (root / SIGNATURE).is_file():
            raise PublishError(f"{root}: is not signed", "Publish it with --sign")
        check_signature(root, signer.identity, signer.issuer)
        yield f"signature   {signer.identity}, by {signer.issuer}"
    elif (root / SIGNATURE).is_file():
        yield "signature   there is one; check it with --identity and --issuer"


def describe_proof(evidence: Evidence) -> str:
    """`460 of 460 checks passed against transformers 5.23.0, matrix standard`."""
    release = evidence.versions.get("transformers")
    return f"{len(evidence.checks)} checks of the {evidence.matrix} matrix pass against transformers {release}"


def check_strangers(root: Path) -> None:
    """Refuse files that nobody lists: a runtime that looks for files by their names would read them.

    Raises:
        ArtifactError: there is one.
    """
    listed = artifact_names(root)
    for name in file_names(root):
        if name not in listed and not any(fnmatch(name.split("/")[0], pattern) for pattern in NOT_FETCHED):
            raise ArtifactError(
                f"{root}: holds {name}, which neither its manifest nor its provenance lists", "Remove it"
            )


def check_statement(root: Path, digests: dict[str, str]) -> int:
    """Compare every subject of the statement with its file; returns how many there are.

    Args:
        digests: of files that are already hashed.

    Raises:
        PublishError: a file is missing, altered or outside the directory.
    """
    listed = subjects(root / STATEMENT)
    for name, digest in listed.items():
        path = root / name
        if not lies_inside(root, name, root) or not path.is_file():
            raise PublishError(f"{root}: {name} is missing, {STATEMENT} lists it", "Fetch it again")
        if (digests.get(name) or sha256_file(path)) != digest:
            raise PublishError(f"{name}: was altered, its sha256 differs from {STATEMENT}", "Fetch it again")
    if unnamed := sorted({MANIFEST, *digests} - set(listed)):
        raise PublishError(f"{root / STATEMENT}: says nothing about {unnamed[0]}", "Fetch it again")
    return len(listed)
