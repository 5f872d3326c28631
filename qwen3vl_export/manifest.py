"""`manifest.json`: everything a reader of an artifact must know, and how it is read without trusting it.

Knows forms and what they promise; nothing about directories. Imports neither torch, transformers nor onnx.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from .contract import TEXT, Facts, differing_sides, graph_of
from .errors import ArtifactError
from .hash_cache import Digest
from .json_form import AtLeast, Like, Line, Matching, from_values, parse
from .promise import Grid, Json, broken_promises, cache_dtype
from .recipe_form import PrecisionName, RecipeForm

Text = str | bytes
FORMAT = 3  # 2: an ort decoder's cache holds no padding; 3: two decoders where runtimes differ, heads
LARGEST_MANIFEST = 100_000_000  # bytes; that of the largest model takes a few million
TOOL = "qwen3vl-export"  # every manifest lists its version
MANIFEST = "manifest.json"
NEEDED_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)

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
    recipe: Annotated[Json, Like(RecipeForm)]
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
