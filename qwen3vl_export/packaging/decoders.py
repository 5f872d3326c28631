"""Two decoders over the same weights, for runtimes that disagree on an input with a default.

transformers.js asks for one row of logits only if the decoder lists `num_logits_to_keep` as an input, and its
onnxruntime lists no input that has a default: with one, a prefill computes and copies the logits of every token.
onnxruntime-genai does not know the input and refuses a decoder that requires it. So transformers.js gets the graph
without the default, under the name that it looks for, and onnxruntime-genai the graph as it was built, under another.
They differ in that default alone and read the same weight files.

Knows ONNX files; imports onnx only when there are two to write.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..contract import DECODER, NUM_LOGITS_TO_KEEP
from ..promise import GENAI, TRANSFORMERS_JS, second_decoder

Graphs = Mapping[str, Mapping[str, Any]]  # graph -> its manifest entry


def write_decoders(
    directory: Path, runtimes: Iterable[str], precisions: Iterable[Graphs], named: Iterable[Graphs]
) -> None:
    """Let every decoder that transformers.js loads require `num_logits_to_keep`, and keep each as it was built beside
    it, if onnxruntime-genai is packaged as well.

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
        require_input(directory / file, NUM_LOGITS_TO_KEEP)


def require_input(path: Path, name: str) -> None:
    """Write a graph again without the default of one of its inputs."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    kept = [tensor for tensor in model.graph.initializer if tensor.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    path.write_bytes(model.SerializeToString(deterministic=True))
