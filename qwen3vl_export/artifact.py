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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from .contract import TEXT, Facts, differing_sides, graph_of
from .errors import ArtifactError
from .hash_cache import Digest, HashCache, sha256_file
from .json_form import AtLeast, Like, Line, Matching, from_values, parse
from .promise import Grid, Json, PrecisionName, RecipePlan, broken_promises, cache_dtype, suffixed

Text = str | bytes
FORMAT = 3  # 2: an ort decoder's cache holds no padding; 3: two decoders where runtimes differ, heads
LARGEST_MANIFEST = 100_000_000  # bytes; that of the largest model takes a few million
TOOL = "qwen3vl-export"  # every manifest lists its version
MANIFEST = "manifest.json"
PARITY = "parity.json"
SUMMARY = "summary.json"  # of a merged verification: verdict, counts, seconds, and how fast the artifact answered
JUNIT = "parity.xml"
REPORTS = (PARITY, JUNIT, "parity.html")  # the last two where they are
STATEMENT = "provenance.intoto.json"
SIGNATURE = "provenance.sigstore.json"  # of the statement
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


_SEGMENT = r"(?!\.\.?(?:/|$))[^/\\:\x00-\x1f\x7f]{1,255}"
FileName = Annotated[str, Matching(f"{_SEGMENT}(?:/{_SEGMENT})*", "the name of a file inside the directory")]


@dataclass(frozen=True)
class FileRecord:
    """Size and sha256 of one file of the artifact."""

    bytes: Annotated[int, AtLeast(0)]
    sha256: Digest


@dataclass(frozen=True)
class Encoder:
    """One vision encoder: the graph's name, and its bound (h, w) patch grid or None if it takes any grid."""

    graph: Line
    grid: Grid | None


@dataclass(frozen=True)
class SourceRecord:
    """The form of what a manifest says of an adapter: where it is from, and the sha256 of its files."""

    source: Line
    revision: Line
    files: Mapping[FileName, Digest]


@dataclass(frozen=True)
class LicenceRecord:
    """The form of the licence that a model card declares."""

    license: Line


@dataclass(frozen=True)
class CheckpointRecord(SourceRecord):
    """The form of what a manifest says of the checkpoint."""

    licence: Annotated[Mapping[str, Line], Like(LicenceRecord)] = field(default_factory=dict)
    adapters: tuple[Annotated[Json, Like(SourceRecord)], ...] = ()


@dataclass(frozen=True)
class TensorRecord:
    """The form of an input or output of a graph."""

    dtype: Line
    shape: tuple[int | Line, ...]


@dataclass(frozen=True)
class BorrowedRecord:
    """The form of what a graph reads of another graph's file."""

    file: FileName


@dataclass(frozen=True)
class GraphRecord:
    """The form of a graph's entry."""

    file: FileName
    data: tuple[FileName, ...]
    inputs: Mapping[Line, Annotated[Json, Like(TensorRecord)]]
    outputs: Mapping[Line, Annotated[Json, Like(TensorRecord)]]
    stages: tuple[Mapping[Line, Any], ...] = ()
    shared: tuple[Annotated[Json, Like(BorrowedRecord)], ...] = ()


@dataclass(frozen=True)
class PrecisionRecord:
    """The form of what a manifest says of a further precision."""

    recipe: Json
    graphs: Mapping[Line, Annotated[Json, Like(GraphRecord)]]


@dataclass(frozen=True)
class Manifest:
    """Everything a reader of the artifact must know, as written to `manifest.json`.

    `graphs` maps a graph's name to `{"file", "data", "inputs", "outputs", "opset", "stages"}`; a shape is a list of
    ints and dim names. `stages` holds nodes, ops and bytes after each build stage. `checkpoint` names the source, the
    resolved revision and the sha256 of its files. `precisions` maps the name of each further precision to its own
    `recipe` and `graphs`; `second_names` maps a weight file that is there under two names from its second to its first.
    No date and no duration: equal inputs give equal bytes.
    """

    name: Annotated[str, Matching("[a-z0-9][a-z0-9._-]{0,200}", "the name of an artifact")]
    recipe: Annotated[Json, Like(RecipePlan)]
    checkpoint: Annotated[Json, Like(CheckpointRecord)]
    facts: Facts
    encoders: tuple[Encoder, ...]
    encoder_rule: Line
    graphs: Mapping[str, Annotated[Any, Like(GraphRecord)]]
    tools: Mapping[Line, Line]
    min_onnxruntime: Annotated[str, Matching(r"\d{1,4}(\.\d{1,4}){1,2}", "a version such as 1.23.0")]
    files: Mapping[FileName, FileRecord] = field(default_factory=dict)
    precisions: Mapping[PrecisionName, Annotated[Any, Like(PrecisionRecord)]] = field(default_factory=dict)
    second_names: Mapping[FileName, FileName] = field(default_factory=dict)

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
            values = parse(text)
            if not isinstance(values, dict):
                raise ValueError("it is not an object")
            written = values.pop("format", None)
            if written != FORMAT:
                raise ArtifactError(
                    f"{path}: format {str(written)[:20]!r}, this version reads {FORMAT}", "Rebuild the artifact"
                )
            values = {"files": {}, "precisions": {}, "second_names": {}, **values}
            if isinstance(values.get("facts"), dict):
                values["facts"] = {"head": TEXT, **values["facts"]}
            manifest = from_values(cls, values)
        except ValueError as error:
            raise ArtifactError(f"{path}: not a manifest ({error})", "Rebuild the artifact") from error
        for broken in chain(broken_promises(values), manifest.contradictions()):
            raise ArtifactError(f"{path}: {broken}", "Rebuild the artifact, or fetch it again")
        return manifest

    def contradictions(self) -> Iterator[str]:
        """Describe what it says that contradicts itself, or the graphs that this version declares."""
        yield from (f"its files do not list {name}" for name in NEEDED_FILES if name not in self.files)
        if TOOL not in self.tools:
            yield f"its tools do not name {TOOL}"
            return
        for second, first in self.second_names.items():
            if second not in self.files or self.files[second] != self.files.get(first):
                yield f"{second} is not {first} under a second name"
        grids = {encoder.graph: encoder.grid for encoder in self.encoders}
        default = {"recipe": self.recipe, "graphs": self.graphs}
        for precision, values in {"": default, **self.precisions}.items():
            cache = cache_dtype(values["recipe"])
            for name, entry in values["graphs"].items():
                for side in differing_sides(graph_of(name, self.facts, grids.get(name), cache), entry):
                    where = f" in precision {precision}" if precision else ""
                    yield f"{side} of {name}{where} are not those this version declares; {self.tools[TOOL]} built it"


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
