"""A publication: a checked artifact, and the card, heatmap, licence and provenance that are published with it.

Refuses an artifact without proof: parity evidence must pass and name this manifest, and every file must match the
manifest. Writes nothing into the artifact; knows nothing about where the files go.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..artifact import REPORTS, STATEMENT, Artifact, check_files, open_artifact
from ..errors import PublishError
from ..evidence import Evidence
from ..hash_cache import sha256_file
from ..manifest import MANIFEST
from ..packaging import RUNTIMES
from ..runtime.external import check_graphs
from .demo import demo_files
from .evidence import check_tier, passing_evidence
from .heatmap import HEATMAP, heatmap
from .licence import licence_of
from .model_card import CARD, model_card
from .provenance import statement
from .sbom import SBOM, sbom

STAGES = "stages/"


@dataclass(frozen=True)
class Publication:
    """Everything that is published: files of the artifact and files generated for the publication.

    Attributes:
        files: name -> path.
        generated: name -> bytes.
    """

    artifact: Artifact
    files: Mapping[str, Path]
    generated: Mapping[str, bytes]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every file, by name."""
        sizes = {name: path.stat().st_size for name, path in self.files.items()}
        sizes |= {name: len(data) for name, data in self.generated.items()}
        return dict(sorted(sizes.items()))


def prepare(root: Path, repository: str | None = None, licence: Path | None = None, demo: bool = False) -> Publication:
    """Check an artifact and generate what is published with it.

    Args:
        repository: `org/name` for the card's snippets; defaults to a placeholder.
        licence: the checkpoint's licence, if the artifact has none.
        demo: add the page that runs it in a browser.

    Raises:
        ArtifactError, UnprovenError: a file differs from the manifest, or parity is not proven.
        PublishError: no licence, the artifact holds build stages, or a demo page could not run it.
    """
    artifact = open_artifact(root, check=False)
    for runtime in artifact.manifest.recipe["packaging"]["runtimes"]:
        if runtime not in RUNTIMES:
            raise PublishError(f"{root}: is for {runtime}, which this version does not know", "Update qwen3vl-export")
    proofs = [(precision, proof(precision)) for precision in artifact.every_precision]
    digests = check_files(artifact, sha256_file)
    check_graphs(artifact)
    if any(name.startswith(STAGES) for name in digests):
        raise PublishError(f"{root}: holds every build stage, which nobody runs", f"Rebuild: {artifact.build_command}")
    files = {name: artifact.root / name for name in digests}
    reports = [precision.evidence_path(name) for precision in artifact.every_precision for name in REPORTS]
    files |= {path.name: path for path in (artifact.root / MANIFEST, *reports) if path.is_file()}
    generated = demo_files(artifact) if demo else {}
    terms = licence_of(artifact, licence)
    if terms.text:
        generated[terms.file] = terms.text.encode()
    name = repository or f"OWNER/{artifact.manifest.name}"
    for precision, evidence in proofs:
        generated[precision.evidence_path(HEATMAP).name] = as_png(heatmap(evidence))
    generated[CARD] = model_card(proofs, name, terms).encode()
    generated[SBOM] = as_json(sbom(artifact, digests))
    rest = {name: path for name, path in files.items() if name not in digests}
    published = {**digests, **{name: sha256(path.read_bytes()) for name, path in rest.items()}}
    published |= {name: sha256(data) for name, data in generated.items()}
    generated[STATEMENT] = as_json(statement(artifact, published))
    return Publication(artifact, files, generated)


def proof(artifact: Artifact) -> Evidence:
    """The evidence of one precision, which must pass on the matrix the recipe names.

    Raises:
        UnprovenError: it does not.
    """
    evidence = passing_evidence(artifact)
    check_tier(artifact, evidence)
    return evidence


def as_png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def as_json(values: object) -> bytes:
    return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
