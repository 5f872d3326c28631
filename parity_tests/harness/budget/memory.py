"""The memory that both sides of a verification take: PyTorch as a whole or a module at a time, and the artifact.

Knows sizes; nothing about how either side computes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from onnx import load

from qwen3vl_export.artifact import Artifact
from qwen3vl_export.contract import DECODER, EMBEDDINGS
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.promise import graph_kind, quantized_graphs
from qwen3vl_export.runtime.external import external_locations

from ..sides.artifact.graph_pieces import PACKED_COPY, CutGraph
from ..sides.pytorch.restored_weights import restoring
from ..sides.pytorch.streamed_model import LAYER
from ..sides.pytorch.torch_model import read_config
from .activations import FLOAT32, Need, cache_of, comparing_of, held_of, need_of, running_of
from .sizes import CaseSizes, ModelSizes

SESSION = 1 + PACKED_COPY  # of an artifact's weights, in a session as the runtime opens it
SLACK = 1.25  # of activations: what allocators have in memory besides
LIBRARIES = 64 << 20  # bytes that libraries take when they compute for the first time
LOADING = 2  # copies of a module's weights in float32 while it is loaded, where they have to be restored


@dataclass(frozen=True)
class MemoryNeeds:
    """Bytes that a verification takes, beside what its process takes already.

    Attributes:
        sessions: the artifact's weights in onnxruntime.
        piece: those of the largest piece, where every graph is cut at every layer.
        decoding: those of the graphs that every token goes through.
        running: the artifact's activations of a case; of the largest.
        waiting: its caches and logits of every case, where all are computed in step.
        comparing: these, and what is compared.
        weights: PyTorch's model in float32.
        module: what is loaded of it at a time where it is streamed.
        dequantized: the artifact's quantized weights that are compared with a module.
        computing: PyTorch's activations of a call that answers all about a case; of the largest.
        in_step: what a call takes while it runs through a module, without the one that holds the most.
        caches: PyTorch's keys and values where it decodes step by step; of the largest case.
    """

    sessions: int
    piece: int
    decoding: int
    running: int
    waiting: int
    comparing: int
    weights: int
    module: int
    dequantized: int
    computing: Need
    in_step: int
    caches: int

    @property
    def whole(self) -> int:
        """Both sides in memory together."""
        return self.sessions + self.weights + self.comparing + self.computing.total + self.caches

    @property
    def artifact(self) -> int:
        """The artifact alone, a piece at a time; its pieces are closed while results are compared."""
        return max(self.piece + self.running, self.comparing)

    @property
    def opened(self) -> int:
        """The artifact alone, its graphs as a whole."""
        return self.sessions + self.comparing

    @property
    def pytorch(self) -> int:
        """PyTorch alone, a module and a case at a time."""
        return LIBRARIES + self.module + max(self.dequantized, round(SLACK * self.computing.total))

    @property
    def streamed(self) -> int:
        """Either side alone."""
        return max(self.artifact, self.pytorch)


def memory_needs(artifact: Artifact, checkpoint: Path, model: ModelSizes, cases: Sequence[CaseSizes]) -> MemoryNeeds:
    """What verifying these cases takes."""
    modules = parameters_of(checkpoint)
    paths = dict.fromkeys(map(artifact.graph_path, artifact.manifest.graphs))
    graphs = [CutGraph(load(path, load_external_data=False)) for path in paths]
    decoding = [artifact.graph_path(name) for name in (EMBEDDINGS, DECODER) if name in artifact.manifest.graphs]
    needs = [need_of(model, case.joined) for case in cases]
    quantized = quantized_graphs(artifact.manifest.recipe, set(map(graph_kind, artifact.manifest.graphs)))
    return MemoryNeeds(
        sessions=round(SESSION * (weights_of(artifact) + sum(graph.folded for graph in graphs))),
        piece=max(graph.largest for graph in graphs),
        decoding=sum(graph.total for path, graph in zip(paths, graphs, strict=True) if path in decoding),
        running=LIBRARIES + max((running_of(model, case) for case in cases), default=0),
        waiting=sum(held_of(model, case) for case in cases),
        comparing=LIBRARIES + max((comparing_of(model, case) for case in cases), default=0),
        weights=FLOAT32 * modules.total(),
        module=loading_of(checkpoint) * max(modules.values()),
        dequantized=FLOAT32 * max(modules.values()) if quantized else 0,
        computing=max(needs, key=lambda need: need.total, default=Need(0, 0)),
        in_step=max((need.passing for need in sorted(needs, key=lambda need: need.held)[:-1]), default=0),
        caches=max((cache_of(model, case) for case in cases), default=0),
    )


def parameters_of(checkpoint: Path) -> Counter[str]:
    """How many weights each module has that is loaded as a whole."""
    modules = Counter[str]()
    for name, tensor in open_checkpoint(str(checkpoint)).tensors.items():
        layer = LAYER.match(name)
        modules[layer[0] if layer else name] += prod(tensor.shape)
    return modules


def loading_of(checkpoint: Path) -> int:
    """Bytes that each weight of a module takes while it is loaded: as stored, and in float32."""
    if restoring(checkpoint, read_config(checkpoint)[1]) is not None:
        return LOADING * FLOAT32
    return FLOAT32 + max(tensor.dtype.itemsize for tensor in open_checkpoint(str(checkpoint)).tensors.values())


def weights_of(artifact: Artifact) -> int:
    """Bytes that the graphs of an artifact's precision read: each file once, whichever graphs share it."""
    return sum(file.stat().st_size for file in graph_files(artifact))


def graph_files(artifact: Artifact) -> set[Path]:
    """The graphs of an artifact's precision, and the files of their weights."""
    files = set()
    for path in map(artifact.graph_path, artifact.manifest.graphs):
        files |= {path, *(path.parent / location for location in external_locations(path.read_bytes()))}
    return files
