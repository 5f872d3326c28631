"""Packaging: what each released runtime needs besides the graphs, as one table, and the function that writes it.

A runtime's entry names the graphs it loads, the files written or completed for it, and its limits. No weight is copied:
every runtime reads the same `onnx/` directory. The content of a runtime's files is defined by its module
(`packaging/genai.py`, `packaging/transformers_js.py`). Knows nothing about weights and runs nothing;
`parity_tests/downstream` does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import contract
from ..contract import Facts
from ..promise import GENAI, ONNXRUNTIME, TRANSFORMERS_JS
from . import genai, transformers_js
from .decoders import write_decoders
from .names import add_second_names
from .package import Package, StorageRules

Json = dict[str, Any]


@dataclass(frozen=True)
class Runtime:
    """What one released runtime needs.

    Attributes:
        releases: the releases that artifacts were run with.
        graphs: the graphs it loads, each for pictures of any size; empty if it loads any.
        heads: the heads it knows what to do with.
        files: the files written or completed for it: name -> function of the package so far.
        largest_file: bytes that no weight file should exceed; None if it has no limit.
        named_by_graph: it looks for a graph's weights only in files named after that graph.
        limits: what it cannot do or does differently, each with its consequence.
    """

    releases: str
    graphs: tuple[str, ...] = ()
    heads: tuple[str, ...] = contract.HEADS
    files: Mapping[str, Callable[[Package], Json]] = field(default_factory=dict)
    largest_file: int | None = None
    named_by_graph: bool = False
    limits: tuple[str, ...] = ()


RUNTIMES: dict[str, Runtime] = {
    ONNXRUNTIME: Runtime(releases="1.23 to 1.32"),
    GENAI: Runtime(
        releases="0.13 to 0.18",
        graphs=(contract.VISION_ENCODER, contract.EMBEDDINGS, contract.DECODER),
        heads=(contract.TEXT,),
        files={
            genai.CONFIG: genai.config,
            genai.PROCESSOR: genai.processor,
        },
        limits=genai.LIMITS,
    ),
    TRANSFORMERS_JS: Runtime(
        releases="4.3",
        graphs=(contract.VISION_ENCODER, contract.EMBED_TOKENS, contract.DECODER),
        files={
            "config.json": transformers_js.config,
            "preprocessor_config.json": transformers_js.preprocessor,
            "tokenizer_config.json": transformers_js.tokenizer,
        },
        largest_file=transformers_js.LARGEST_FILE,
        named_by_graph=True,
        limits=transformers_js.LIMITS,
    ),
}


def loadable_runtimes(graphs: Sequence[str], grid: str, head: str) -> tuple[str, ...]:
    """Which runtimes can load such an artifact: all but plain onnxruntime need one encoder for any grid."""
    return tuple(
        name
        for name, runtime in RUNTIMES.items()
        if head in runtime.heads and (not runtime.graphs or (grid == "dynamic" and set(runtime.graphs) <= set(graphs)))
    )


def storage_rules(runtimes: Sequence[str]) -> StorageRules:
    """How weights must be stored so that each of these runtimes, names from `RUNTIMES`, finds them."""
    entries = [RUNTIMES[name] for name in runtimes]
    limits = [runtime.largest_file for runtime in entries if runtime.largest_file is not None]
    return StorageRules(min(limits, default=None), any(runtime.named_by_graph for runtime in entries))


def write_packaging(
    directory: Path,
    runtimes: Sequence[str],
    facts: Facts,
    graphs: Mapping[str, Mapping[str, Json]],
    provider: str = "cpu",
) -> dict[str, str]:
    """Write what the runtimes need into an artifact directory that has graphs and the checkpoint's settings.

    Args:
        runtimes: names from `RUNTIMES`.
        graphs: the manifest's entry of each graph, by precision.
        provider: as of `Package`.

    Returns:
        Second names of weight files -> their first names.
    """
    graphs_to_name = RUNTIMES[TRANSFORMERS_JS].graphs if TRANSFORMERS_JS in runtimes else ()
    named_graphs, second_names = add_second_names(directory, graphs, graphs_to_name)
    write_decoders(directory, runtimes, graphs.values(), named_graphs.values())
    package = Package(directory, facts, named_graphs, provider)
    for runtime in runtimes:
        for name, content in RUNTIMES[runtime].files.items():
            text = json.dumps(content(package), indent=2, ensure_ascii=False)
            (directory / name).write_text(text + "\n", "utf-8")
    return second_names
