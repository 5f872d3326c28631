"""The artifact directory: its layout, its manifest and the check that nothing in it was altered.

    DIR/manifest.json                   this module's `Manifest`, written last
    DIR/onnx/<graph>.onnx, .onnx_data   the graphs of `contract.py`; data past a limit in .onnx_data_1, …
    DIR/config.json, tokenizer.json, …  the checkpoint's own files, copied
    DIR/parity.json, parity.xml         evidence; it names the manifest's sha256, so it is not listed in it

Knows nothing about how graphs are made or run. Imports neither torch, transformers nor onnx.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .contract import Facts
from .errors import ArtifactError
from .hash_cache import HashCache, sha256_file

FORMAT = 2  # 2: an ort decoder's cache holds no padding
MANIFEST = "manifest.json"
PARITY = "parity.json"
JUNIT = "parity.xml"
GRAPH_DIR = "onnx"
CHECKPOINT_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
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
    resolved revision and the sha256 of its files. No date and no duration: equal inputs give equal bytes.
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

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        values = json.loads(text)
        found = values.pop("format", None)
        if found != FORMAT:
            raise ArtifactError(f"{MANIFEST}: format {found!r}, this version reads {FORMAT}", "Rebuild the artifact")
        values["facts"] = Facts.from_json(values["facts"])
        values["encoders"] = tuple(
            Encoder(e["graph"], tuple(e["grid"]) if e["grid"] is not None else None) for e in values["encoders"]
        )
        values["files"] = {name: FileRecord(**record) for name, record in values["files"].items()}
        return cls(**values)


@dataclass(frozen=True)
class Artifact:
    """An artifact directory that was opened; `open_artifact` is the way to get one."""

    root: Path
    manifest: Manifest

    @cached_property
    def manifest_sha256(self) -> str:
        return sha256_file(self.root / MANIFEST)

    @property
    def build_command(self) -> str:
        return f"qwen3vl-export build {self.manifest.name} --force"

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


def open_artifact(root: Path, check: bool = True) -> Artifact:
    """Read the manifest and, unless `check` is False, verify size and sha256 of every file it lists.

    Raises:
        ArtifactError: no such directory, no manifest, or a file that is missing, altered or outside the directory.
    """
    path = root / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{root}: no {MANIFEST} here", "Build one: qwen3vl-export build recipes/tiny.yaml")
    try:
        manifest = Manifest.from_json(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: not a manifest ({error})", "Rebuild the artifact") from error
    artifact = Artifact(root, manifest)
    if check:
        check_files(artifact)
    return artifact


def check_files(artifact: Artifact) -> None:
    """Compare every listed file with its record; the first difference raises.

    A file that was hashed before and has not been touched since is not read again (`hash_cache.py`).
    """
    hashes = HashCache()
    root = artifact.root.resolve()
    rebuild = f"Rebuild: {artifact.build_command}"
    for name, record in artifact.manifest.files.items():
        path = artifact.root / name
        if not path.resolve().is_relative_to(root):
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
