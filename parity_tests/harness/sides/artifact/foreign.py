"""Packages of other exporters: a small YAML file says which graph is which and what its tensors are called.

    name: somebody/package
    checkpoint: ../checkpoint          # what PyTorch loads, relative to this file; or verify --checkpoint DIR
    tolerances: float32                # a profile of tolerances.yaml
    graphs:
      vision_encoder:
        file: onnx/vision.onnx
        inputs: {pixel_values: pixels} # this project's name: the package's; names not listed are equal
      decoder_model_merged:
        file: onnx/model.onnx
        inputs: {past_key_values: "past.{layer}.{part}"}
        outputs: {present: "present.{layer}.{part}"}

The shipped runtime then runs it under translated names. Features and rows as narrow as the hidden size have no
DeepStack maps; they are read as wide ones whose maps are zero, which is equivalent, and verification reports that
they are missing. Without an `embeddings` graph the features are scattered here, as the package's own runtime would do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from qwen3vl_export.artifact import Artifact
from qwen3vl_export.contract import (
    ANY_GRID,
    DECODER,
    EMBED_TOKENS,
    EMBEDDINGS,
    IMAGE_FEATURES,
    INPUT_IDS,
    INPUTS_EMBEDS,
    VISION_ENCODER,
)
from qwen3vl_export.errors import ArtifactError
from qwen3vl_export.exporter.checkpoint import Checkpoint, open_checkpoint
from qwen3vl_export.exporter.checkpoint.adapter import open_adapter
from qwen3vl_export.hash_cache import sha256_file
from qwen3vl_export.manifest import Encoder, Manifest
from qwen3vl_export.runtime.positions import visual_tokens
from qwen3vl_export.runtime.session import Opener, Sessions

from ...strict import Strict, describe_problem

GRAPHS = (VISION_ENCODER, EMBED_TOKENS, EMBEDDINGS, DECODER)
WIDE = (IMAGE_FEATURES, INPUTS_EMBEDS)
SUFFIXES = (".yaml", ".yml")
LAYERED = ("past_key_values", "present")

Feeds = Mapping[str, NDArray[Any]]


class ForeignGraph(Strict):
    """One graph: its file relative to the contract, and names that differ from this project's."""

    file: str
    inputs: dict[str, str] = Field(default_factory=dict)
    outputs: dict[str, str] = Field(default_factory=dict)


class ForeignContract(Strict):
    """A package's contract file."""

    name: str
    checkpoint: str | None = None
    tolerances: str = "float32"
    matrix: str = "quick"
    graphs: dict[str, ForeignGraph] = Field(min_length=1)


def is_contract(path: Path) -> bool:
    return path.suffix in SUFFIXES and path.is_file()


def read_contract(path: Path) -> ForeignContract:
    """Read a contract file strictly.

    Raises:
        ArtifactError: it is not a valid contract, or names a file that does not exist.
    """
    hint = "See the top of parity_tests/harness/sides/artifact/foreign.py for what a contract says"
    try:
        contract = ForeignContract.model_validate(yaml.safe_load(path.read_text("utf-8")))
    except (yaml.YAMLError, ValidationError) as error:
        raise ArtifactError(f"{path}: {describe_problem(error)}", hint) from error
    for name, graph in contract.graphs.items():
        if name not in GRAPHS:
            raise ArtifactError(f"{path}: graphs.{name}: no such graph", f"Graphs are {', '.join(GRAPHS)}")
        if not (path.parent / graph.file).is_file():
            raise ArtifactError(f"{path}: graphs.{name}: {graph.file} is missing", "Paths are relative to the contract")
    return contract


def open_foreign(
    path: Path, checkpoint: Path | None = None, adapters: Sequence[str] = ()
) -> tuple[Artifact, Checkpoint]:
    """A package as an artifact, and the checkpoint it claims to be made from, with the adapters given.

    Raises:
        ArtifactError, CheckpointError: the contract, a graph or the checkpoint cannot be read.
    """
    contract = read_contract(path)
    source = checkpoint or (path.parent / contract.checkpoint if contract.checkpoint else None)
    if source is None:
        raise ArtifactError(f"{path}: names no checkpoint", "Add checkpoint: DIR, or pass --checkpoint DIR")
    opened = open_checkpoint(str(source.resolve())).adapted([open_adapter(adapter) for adapter in adapters])
    graphs = {name: {"file": graph.file} for name, graph in contract.graphs.items()}
    if EMBEDDINGS not in graphs and EMBED_TOKENS in graphs:
        graphs[EMBEDDINGS] = graphs[EMBED_TOKENS]  # with the features scattered here
    manifest = Manifest(
        name=contract.name,
        recipe={
            "graphs": list(graphs),
            "vision": {"grid": "dynamic", "sizes": []},
            "parity": {"matrix": contract.matrix, "tolerances": contract.tolerances, "held_out": False},
        },
        checkpoint=opened.provenance(),
        facts=opened.facts,
        encoders=(Encoder(VISION_ENCODER, None),),
        encoder_rule=ANY_GRID,
        graphs=graphs,
        tools={},
        min_onnxruntime="1.0",
    )
    digest = hashlib.sha256(path.read_bytes())
    for graph in contract.graphs.values():
        digest.update(sha256_file(path.parent / graph.file).encode())
    return Artifact(path.parent, manifest, digest=digest.hexdigest()), opened


class ForeignSessions(Sessions):
    """Runs a package's graphs under this project's names and widths."""

    def __init__(
        self,
        artifact: Artifact,
        contract: ForeignContract,
        threads: int | None = None,
        opener: Opener | None = None,
    ) -> None:
        super().__init__(artifact, threads, opener)
        self.contract = contract

    def dtypes(self, graph: str) -> dict[str, np.dtype[Any]]:
        if self._needs_scatter(graph):
            return {INPUT_IDS: np.dtype(np.int64), IMAGE_FEATURES: np.dtype(np.float32)}
        dtypes = super().dtypes(graph)
        names = {self.name_in_graph(graph, name): name for name in self._renamed(graph, dtypes)}
        return {names.get(name, name): dtype for name, dtype in dtypes.items()}

    def run(self, graph: str, feeds: Feeds, outputs: Sequence[str]) -> list[Any]:
        if self._needs_scatter(graph):
            return [self._scatter_features(feeds)]
        names = [self.name_in_graph(graph, name, "outputs") for name in outputs]
        results = super().run(graph, self.translate_feeds(graph, feeds), names)
        return [self._widen(array) if name in WIDE else array for name, array in zip(outputs, results, strict=True)]

    def translate_feeds(self, graph: str, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Feeds under the package's names, with rows of the width the graph takes."""
        shapes = {node.name: node.shape for node in self.open(graph).get_inputs()}
        translated = {}
        for name, array in feeds.items():
            graph_name = self.name_in_graph(graph, name)
            if name in WIDE and shapes.get(graph_name, [None])[-1] == self.facts.hidden_size:
                array = np.ascontiguousarray(array[..., : self.facts.hidden_size])
            translated[graph_name] = array
        return translated

    def name_in_graph(self, graph: str, name: str, side: str = "inputs") -> str:
        """The package's name of one of this project's tensors."""
        names: dict[str, str] = getattr(self.contract.graphs[graph], side)
        kind, _, rest = name.partition(".")
        if kind in LAYERED and kind in names:
            layer, _, part = rest.partition(".")
            return names[kind].format(layer=layer, part=part)
        return names.get(name, name)

    def _renamed(self, graph: str, inputs: Mapping[str, Any]) -> list[str]:
        """This project's names of inputs to which the contract gives another name."""
        layers = [
            f"{kind}.{i}.{part}"
            for kind in LAYERED
            for i in range(self.facts.num_hidden_layers)
            for part in ("key", "value")
        ]
        listed = [name for name in self.contract.graphs[graph].inputs if name not in LAYERED]
        return [name for name in (*listed, *layers) if self.name_in_graph(graph, name) in inputs]

    def _widen(self, array: NDArray[Any]) -> NDArray[Any]:
        """[..., H] -> [..., W], with zeros for the missing maps."""
        missing = self.facts.wide_size - array.shape[-1]
        return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)]) if missing > 0 else array

    def _needs_scatter(self, graph: str) -> bool:
        return graph == EMBEDDINGS and EMBEDDINGS not in self.contract.graphs

    def _scatter_features(self, feeds: Feeds) -> NDArray[Any]:
        """Rows of the token table, with features at image and video tokens."""
        rows: NDArray[Any] = self.run(EMBED_TOKENS, {INPUT_IDS: feeds[INPUT_IDS]}, [INPUTS_EMBEDS])[0].copy()
        rows[visual_tokens(feeds[INPUT_IDS], self.facts)] = feeds[IMAGE_FEATURES]
        return rows
