"""The artifact directory: its layout, its manifest and the check that nothing in it was altered.

    DIR/manifest.json                   this module's `Manifest`, written last
    DIR/onnx/<graph>.onnx, .onnx_data   the graphs of `contract.py`; data past a limit in .onnx_data_1, …
    DIR/config.json, tokenizer.json, …  the checkpoint's own files, copied
    DIR/parity.json, parity.xml, …      evidence; it names the manifest's sha256, so it is not listed in it
    DIR/provenance.intoto.json          of a published artifact: it lists every file, also those that publishing adds

A precision beside the default one has graphs `onnx/<graph>_<precision>.onnx` and evidence `parity_<precision>.json`; a
graph that it stores as another one does is that one's file.

Knows nothing about how graphs are made or run. Imports neither torch, transformers nor onnx.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from .contract import Facts
from .errors import ArtifactError
from .hash_cache import HashCache, sha256_file
from .promise import broken_promises

Text = str | bytes
FORMAT = 2  # 2: an ort decoder's cache holds no padding
MANIFEST = "manifest.json"
PARITY = "parity.json"
SUMMARY = "summary.json"  # of a merged verification: verdict, counts, seconds, and how fast the artifact answered
JUNIT = "parity.xml"
REPORTS = (PARITY, JUNIT, "parity.html")  # the last two where they are
STATEMENT = "provenance.intoto.json"
SIGNATURE = "provenance.sigstore.json"  # of the statement
GRAPH_DIR = "onnx"
NEEDED_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def data_name(stem: str, index: int) -> str:
    """`decoder_model_merged.onnx_data`, `decoder_model_merged.onnx_data_1`, …: the names transformers.js looks for."""
    return f"{stem}.onnx_data" + (f"_{index}" if index else "")


@dataclass(frozen=True)
class FileRecord:
    """Size and sha256 of one file of the artifact."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Encoder:
    """One vision encoder: the graph's name, and its bound (h, w) patch grid or None if it takes any grid."""

    graph: str
    grid: tuple[int, int] | None


@dataclass(frozen=True)
class Manifest:
    """Everything a reader of the artifact must know, as written to `manifest.json`.

    `graphs` maps a graph's name to `{"file", "data", "inputs", "outputs", "opset", "stages"}`; a shape is a list of
    ints and dim names. `stages` holds nodes, ops and bytes after each build stage. `checkpoint` names the source, the
    resolved revision and the sha256 of its files. `precisions` maps the name of each further precision to its own
    `recipe` and `graphs`; `second_names` maps a weight file that is there under two names from its second to its first.
    No date and no duration: equal inputs give equal bytes.
    """

    name: str
    recipe: Mapping[str, Any]
    checkpoint: Mapping[str, Any]
    facts: Facts
    encoders: tuple[Encoder, ...]
    encoder_rule: str
    graphs: Mapping[str, Any]
    tools: Mapping[str, str]
    min_onnxruntime: str
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    precisions: Mapping[str, Any] = field(default_factory=dict)
    second_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes of all files; a file with two names counts once."""
        return sum(record.bytes for name, record in self.files.items() if name not in self.second_names)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: Text, path: str | Path = MANIFEST) -> Manifest:
        """Read a manifest, and hold it against what its own recipe promises: every reader comes by here.

        Args:
            path: what errors call it.

        Raises:
            ArtifactError: it is no manifest, of another format, or does not list what its recipe promises.
        """
        try:
            values = json.loads(text)
            found = values.pop("format", None)
            if found != FORMAT:
                raise ArtifactError(f"{path}: format {found!r}, this version reads {FORMAT}", "Rebuild the artifact")
            unlisted = (f"its files do not list {name}" for name in NEEDED_FILES if name not in values["files"])
            for broken in chain(broken_promises(values), unlisted):
                raise ArtifactError(f"{path}: {broken}", "Rebuild the artifact, or fetch it again")
            values["facts"] = Facts.from_json(values["facts"])
            values["encoders"] = tuple(
                Encoder(e["graph"], tuple(e["grid"]) if e["grid"] is not None else None) for e in values["encoders"]
            )
            values["files"] = {name: FileRecord(**record) for name, record in values["files"].items()}
            return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ArtifactError(f"{path}: not a manifest ({error})", "Rebuild the artifact") from error


@dataclass(frozen=True)
class Artifact:
    """An artifact directory that was opened, in one of its precisions; `open_artifact` is the way to get one.

    Args:
        digest: the manifest's sha256 where it is not a file in `root`; "" hashes that file.
    """

    root: Path
    manifest: Manifest
    precision: str = ""
    digest: str = ""

    @cached_property
    def manifest_sha256(self) -> str:
        return self.digest or sha256_file(self.root / MANIFEST)

    @property
    def build_command(self) -> str:
        return f"qwen3vl-export build {self.manifest.recipe.get('name', self.manifest.name)} --force"

    def at(self, precision: str) -> Artifact:
        """The artifact with the graphs and the recipe of another of its precisions; "" is the default one.

        Raises:
            ArtifactError: it has no such precision.
        """
        if not precision:
            return self
        if precision not in self.manifest.precisions:
            known = ", ".join(self.manifest.precisions)
            raise ArtifactError(
                f"{self.root}: has no precision {precision}", f"Besides the default it has {known or 'none'}"
            )
        name = suffixed(self.manifest.name, precision)
        chosen = self.manifest.precisions[precision]
        manifest = replace(self.manifest, name=name, recipe=chosen["recipe"], graphs=chosen["graphs"])
        return Artifact(self.root, manifest, precision)

    @property
    def every_precision(self) -> tuple[Artifact, ...]:
        """The artifact in each of its precisions, the default one first."""
        return (self, *(self.at(precision) for precision in self.manifest.precisions))

    def evidence_path(self, name: str = PARITY) -> Path:
        """Where evidence about this precision lies: `parity.json`, `parity_q4.json`."""
        return self.root / evidence_name(name, self.precision)

    def graph_path(self, name: str) -> Path:
        """Path of a graph's `.onnx` file.

        Raises:
            ArtifactError: the artifact has no graph of that name.
        """
        if name not in self.manifest.graphs:
            raise ArtifactError(f"{self.root}: no graph named {name}", f"It has {', '.join(self.manifest.graphs)}")
        return self.root / str(self.manifest.graphs[name]["file"])

    def json_file(self, name: str) -> dict[str, Any]:
        """One of the checkpoint's JSON files, parsed."""
        path = self.root / name
        if not path.is_file():
            raise ArtifactError(f"{self.root}: {name} is missing", f"Rebuild: {self.build_command}")
        result: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return result


def suffixed(name: str, precision: str) -> str:
    """What a graph, a report or an artifact of this name is called in a precision: `decoder_model_merged_q4`."""
    return f"{name}_{precision}" if precision else name


def evidence_name(name: str, precision: str) -> str:
    """What a file of evidence is called in a precision: `parity_q4.json`."""
    stem, dot, ending = name.partition(".")
    return f"{suffixed(stem, precision)}{dot}{ending}"


def open_artifact(root: Path, check: bool = True, precision: str = "") -> Artifact:
    """Read the manifest and, unless `check` is False, verify size and sha256 of every file it lists.

    Args:
        precision: one of those the artifact has; "" is the default one.

    Raises:
        ArtifactError: no such directory, no manifest, one that does not list what its recipe promises, no such
            precision, or a file that is missing, altered or outside the directory.
    """
    path = root / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{root}: no {MANIFEST} here", "Build one: qwen3vl-export build recipes/tiny.yaml")
    artifact = Artifact(root, Manifest.from_json(path.read_bytes(), path)).at(precision)
    if check:
        check_files(artifact)
    return artifact


def lies_inside(directory: Path, name: str, root: Path) -> bool:
    """Whether a file that an artifact names belongs to it, wherever symbolic links lead.

    A snapshot in huggingface_hub's cache (`models--ORG--NAME/snapshots/COMMIT`) consists of links to the files of the
    same repository (`models--ORG--NAME/blobs`); those belong to it too.

    Args:
        directory: must contain the file; the root or below it.
        name: relative to the directory.
        root: of the artifact.
    """
    inside, home = directory.resolve(), root.resolve()
    repository = home.parent.parent
    is_snapshot = home.parent.name == "snapshots" and repository.name.startswith("models--")
    homes = (inside, repository / "blobs") if is_snapshot else (inside,)
    named = Path(os.path.normpath(inside / name))
    return named.is_relative_to(inside) and any((inside / name).resolve().is_relative_to(one) for one in homes)


def check_files(artifact: Artifact) -> None:
    """Compare every listed file with its record; the first difference raises.

    A file that was hashed before and has not been touched since is not read again (`hash_cache.py`).
    """
    hashes = HashCache()
    rebuild = f"Rebuild: {artifact.build_command}"
    for name, record in artifact.manifest.files.items():
        path = artifact.root / name
        if not lies_inside(artifact.root, name, artifact.root):
            raise ArtifactError(f"{name}: lies outside the artifact directory", rebuild)
        if not path.is_file():
            raise ArtifactError(f"{artifact.root}: {name} is missing", rebuild)
        if path.stat().st_size != record.bytes:
            raise ArtifactError(
                f"{name}: {path.stat().st_size} bytes, {MANIFEST} says {record.bytes}: the file was altered", rebuild
            )
        if hashes.sha256(path) != record.sha256:
            raise ArtifactError(f"{name}: sha256 differs from {MANIFEST}: the file was altered", rebuild)
    hashes.save()
