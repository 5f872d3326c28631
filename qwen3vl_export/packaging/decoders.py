"""Two decoders over the same weights, for runtimes that disagree on an input with a default and on the output head.

transformers.js asks for one row of logits only if the decoder lists `num_logits_to_keep` as an input, and its
onnxruntime lists no input that has a default: with one, a prefill computes and copies the logits of every token.
onnxruntime-genai does not know the input and refuses a decoder that requires it. A large quantized head needs blocks in
WebAssembly (`head_blocks.py`); onnxruntime-genai, which asks for the logits of every token, would pay for joining them.
So transformers.js gets a graph without the default and with a head in blocks, under the name that it looks for, and
onnxruntime-genai the graph as it was built, under another. They read the same weight files.

Knows ONNX files; imports onnx only when there are two to write.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..contract import DECODER, NUM_LOGITS_TO_KEEP
from ..promise import GENAI, TRANSFORMERS_JS, second_decoder
from .head_blocks import split_head

if TYPE_CHECKING:
    from onnx import GraphProto

Graphs = Mapping[str, Mapping[str, Any]]  # graph -> its manifest entry


def write_decoders(
    directory: Path, runtimes: Iterable[str], precisions: Iterable[Graphs], named: Iterable[Graphs]
) -> None:
    """Let every decoder that transformers.js loads require `num_logits_to_keep` and multiply with a head in blocks, and
    keep each as it was built beside it, if onnxruntime-genai is packaged as well.

    Args:
        precisions: the graphs of every precision.
        named: the same, under the names by which transformers.js looks for them.
    """
    if TRANSFORMERS_JS not in runtimes:
        return
    built = {graphs[DECODER]["file"] for graphs in precisions}
    if GENAI in runtimes:
        for file in built:
            shutil.copyfile(directory / file, directory / second_decoder(file))
    for file in sorted(built | {graphs[DECODER]["file"] for graphs in named}):
        adapt(directory / file)


def adapt(path: Path) -> None:
    """Write a decoder again as transformers.js needs it."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    require_input(model.graph, NUM_LOGITS_TO_KEEP)
    split_head(model.graph)
    path.write_bytes(model.SerializeToString(deterministic=True))


def require_input(graph: GraphProto, name: str) -> None:
    """Drop the default of an input."""
    kept = [tensor for tensor in graph.initializer if tensor.name != name]
    del graph.initializer[:]
    graph.initializer.extend(kept)
