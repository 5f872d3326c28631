"""The artifact directory: its layout and the check that nothing in it was altered.

    DIR/manifest.json                   the `Manifest` of `manifest.py`, written last
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
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import ArtifactError
from .hash_cache import HashCache, sha256_file
from .manifest import LARGEST_MANIFEST, MANIFEST, Manifest
from .promise import suffixed

PARITY = "parity.json"
SUMMARY = "summary.json"  # of a merged verification: verdict, counts, seconds, and how fast the artifact answered
JUNIT = "parity.xml"
REPORTS = (PARITY, JUNIT, "parity.html")  # the last two where they are
STATEMENT = "provenance.intoto.json"
SIGNATURE = "provenance.sigstore.json"  # of the statement


def data_name(stem: str, index: int) -> str:
    """`decoder_model_merged.onnx_data`, `decoder_model_merged.onnx_data_1`, …: the names transformers.js looks for."""
    return f"{stem}.onnx_data" + (f"_{index}" if index else "")


def block_name(name: str, start: int, stop: int) -> str:
    """What some rows of a weight are called where a graph reads them by themselves: `lm_head.weight.scales[0:128]`."""
    return f"{name}[{start}:{stop}]"


def whole_name(name: str) -> str:
    """The weight that a tensor is a block of rows of: `lm_head.weight.scales`; its own name if it is a whole one."""
    return re.sub(r"\[\d+:\d+\]$", "", name)


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

    def has(self, name: str) -> bool:
        """Whether a file is there and belongs to the artifact. A file that its manifest does not list was never
        compared with anything; the package of another exporter has a manifest that lists none."""
        return (name in self.manifest.files or not self.manifest.files) and (self.root / name).is_file()

    def text_file(self, name: str) -> str:
        """One of the checkpoint's text files.

        Raises:
            ArtifactError: it is missing, not listed in the manifest, or not UTF-8.
        """
        if not self.has(name):
            raise ArtifactError(f"{self.root}: {name} is missing", f"Rebuild: {self.build_command}")
        try:
            return (self.root / name).read_text("utf-8")
        except UnicodeDecodeError:
            raise ArtifactError(
                f"{self.root / name}: not a text file in UTF-8", f"Rebuild: {self.build_command}"
            ) from None

    def json_file(self, name: str) -> dict[str, Any]:
        """One of the checkpoint's JSON files, parsed.

        Raises:
            ArtifactError: as `text_file`, or it is not a JSON object.
        """
        text = self.text_file(name)
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{self.root / name}: not JSON ({error})", f"Rebuild: {self.build_command}") from None
        if not isinstance(values, dict):
            raise ArtifactError(f"{self.root / name}: not a JSON object", f"Rebuild: {self.build_command}")
        return values


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
            precision, a file that is missing or altered, or, even if `check` is False, a link to a file elsewhere.
    """
    path = root / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{root}: no {MANIFEST} here", "Build one: qwen3vl-export build recipes/tiny.yaml")
    if path.stat().st_size > LARGEST_MANIFEST:
        raise ArtifactError(f"{path}: not a manifest (over {LARGEST_MANIFEST} bytes)", "Rebuild the artifact")
    artifact = Artifact(root, Manifest.from_json(path.read_bytes(), path))
    check_links(artifact)
    artifact = artifact.at(precision)
    if check:
        hashes = HashCache()
        check_files(artifact, hashes.sha256)
        hashes.save()
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
    try:
        target = (inside / name).resolve()
    except (OSError, RuntimeError):  # links in a circle (RuntimeError before 3.13)
        return False
    return named.is_relative_to(inside) and any(target.is_relative_to(one) for one in homes)


def check_links(artifact: Artifact) -> None:
    """Refuse files of an artifact that are links to files elsewhere: of the manifest, the evidence and the provenance.

    Raises:
        ArtifactError: one is.
    """
    reports = (evidence_name(name, precision) for name in REPORTS for precision in ("", *artifact.manifest.precisions))
    for name in (MANIFEST, *reports, STATEMENT, SIGNATURE, *artifact.manifest.files):
        if not lies_inside(artifact.root, name, artifact.root):
            raise ArtifactError(f"{artifact.root / name}: lies outside the artifact directory", "Do not use it")


def check_files(artifact: Artifact, sha256: Callable[[Path], str]) -> dict[str, str]:
    """Compare every listed file with its record; the first difference raises.

    Args:
        sha256: of a file; that of a `HashCache` does not read one again that has not been touched since.

    Returns:
        The sha256 of each file, by name.

    Raises:
        ArtifactError: a file is missing or altered.
    """
    advice = f"Fetch it again, or rebuild: {artifact.build_command}"
    digests = {}
    for name, record in artifact.manifest.files.items():
        path = artifact.root / name
        if not path.is_file():
            raise ArtifactError(f"{artifact.root}: {name} is missing", advice)
        if path.stat().st_size != record.bytes:
            raise ArtifactError(
                f"{name}: was altered, it has {path.stat().st_size} bytes and {MANIFEST} says {record.bytes}", advice
            )
        digests[name] = sha256(path)
        if digests[name] != record.sha256:
            raise ArtifactError(f"{name}: was altered, its sha256 differs from {MANIFEST}", advice)
    return digests
