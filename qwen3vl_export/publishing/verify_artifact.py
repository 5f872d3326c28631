"""`verify-artifact`: every check of an artifact that needs neither a network nor torch nor the checkpoint.

Files against the manifest, the manifest against this version's graph contract, the parity evidence against the
manifest, and, where the artifact was published, every file against the provenance statement and its signature.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .. import contract
from ..artifact import MANIFEST, SIGNATURE, STATEMENT, Artifact, lies_inside, open_artifact
from ..contract import Facts, Graph, Tensor
from ..errors import ArtifactError, PublishError
from ..evidence import Evidence
from ..hash_cache import sha256_file
from .evidence import passing_evidence
from .provenance import check_signature, subjects

HEADS = {
    contract.EMBED_TOKENS: contract.embed_tokens,
    contract.EMBEDDINGS: contract.embeddings,
    contract.DECODER: contract.decoder,
}


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
    digests = check_digests(artifact)
    yield f"files       {len(artifact.manifest.files)} are as {MANIFEST} says"
    for precision in artifact.every_precision:
        check_contract(precision)
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


def check_digests(artifact: Artifact) -> dict[str, str]:
    """Hash every file of the manifest again: name -> sha256.

    Raises:
        ArtifactError: a file is missing, altered or outside the artifact.
    """
    advice = f"Fetch it again, or rebuild: {artifact.build_command}"
    digests = {}
    for name, record in artifact.manifest.files.items():
        path = artifact.root / name
        if not lies_inside(artifact.root, name, artifact.root):
            raise ArtifactError(f"{name}: lies outside the artifact directory", advice)
        if not path.is_file():
            raise ArtifactError(f"{artifact.root}: {name} is missing", advice)
        digests[name] = sha256_file(path)
        if digests[name] != record.sha256:
            raise ArtifactError(f"{name}: was altered, its sha256 differs from {MANIFEST}", advice)
    return digests


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


def check_contract(artifact: Artifact) -> None:
    """Compare the manifest's graphs with `contract.py`.

    Raises:
        ArtifactError: a graph's inputs or outputs are not the declared ones.
    """
    facts, grids = artifact.manifest.facts, {encoder.graph: encoder.grid for encoder in artifact.manifest.encoders}
    for name, entry in artifact.manifest.graphs.items():
        declared = graph_of(name, facts, grids.get(name))
        for kind, tensors in (("inputs", declared.inputs), ("outputs", declared.outputs)):
            expected = {tensor.name: list(tensor.shape) for tensor in tensors}
            shapes = {tensor: values["shape"] for tensor, values in entry[kind].items()}
            if shapes != expected or not all(fits(tensor, entry[kind][tensor.name]["dtype"]) for tensor in tensors):
                raise ArtifactError(
                    f"{artifact.root}: {kind} of {name} are not those this version declares",
                    f"Use the version it was built with, {artifact.manifest.tools['qwen3vl-export']}, or rebuild",
                )


def graph_of(name: str, facts: Facts, grid: tuple[int, int] | None) -> Graph:
    """The declaration of a graph by name; every other name is a vision encoder's."""
    return HEADS[name](facts) if name in HEADS else contract.vision_encoder(facts, name, grid)


def fits(tensor: Tensor, dtype: str) -> bool:
    return dtype == tensor.dtype or (tensor.dtype == "float" and dtype.startswith(("float", "bfloat")))
