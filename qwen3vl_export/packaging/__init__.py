"""Packaging: what each released runtime needs beside the graphs, as one table, and the function that writes it.

A runtime's entry names the graphs it loads, the files that are made or completed for it, and its limits. No weight byte
is copied: every runtime reads the same `onnx/` directory. What is in a file, its own module says (`packaging/genai.py`,
`packaging/transformers_js.py`). Knows nothing about weights and runs nothing; `parity_tests/downstream` does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import contract
from ..contract import Facts
from . import genai, transformers_js
from .names import second_names
from .package import Package, Storage

ONNXRUNTIME = "onnxruntime"
GENAI = "onnxruntime-genai"
TRANSFORMERS_JS = "transformers.js"

Json = dict[str, Any]


@dataclass(frozen=True)
class Runtime:
    """What one released runtime needs.

    Attributes:
        releases: the releases an artifact was run with.
        graphs: the graphs it loads, each for pictures of any size; empty if it takes what the artifact has.
        files: the files made for it, or completed: name -> function of the package so far.
        largest_file: bytes that no weight file should exceed; None if it takes any.
        own_data: it looks for a graph's weights only in files named after that graph.
        limits: what it cannot do or does differently, each with what happens then.
    """

    releases: str
    graphs: tuple[str, ...] = ()
    files: Mapping[str, Callable[[Package], Json]] = field(default_factory=dict)
    largest_file: int | None = None
    own_data: bool = False
    limits: tuple[str, ...] = ()


RUNTIMES: dict[str, Runtime] = {
    ONNXRUNTIME: Runtime(releases="1.23 to 1.32"),
    GENAI: Runtime(
        releases="0.13 to 0.18",
        graphs=(contract.VISION_ENCODER, contract.EMBEDDINGS, contract.DECODER),
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
        own_data=True,
        limits=transformers_js.LIMITS,
    ),
}


def loadable_by(graphs: Sequence[str], grid: str) -> tuple[str, ...]:
    """Which runtimes can load such an artifact: all but plain onnxruntime want one encoder for any grid."""
    dynamic = grid == "dynamic"
    return tuple(name for name, one in RUNTIMES.items() if not one.graphs or (dynamic and set(one.graphs) <= {*graphs}))


def storage(runtimes: Sequence[str]) -> Storage:
    """How weights must lie so that each of these runtimes, names from `RUNTIMES`, finds them."""
    chosen = [RUNTIMES[name] for name in runtimes]
    limits = [one.largest_file for one in chosen if one.largest_file is not None]
    return Storage(min(limits, default=None), any(one.own_data for one in chosen))


def package(
    directory: Path, runtimes: Sequence[str], facts: Facts, graphs: Mapping[str, Mapping[str, Json]]
) -> dict[str, str]:
    """Write what the runtimes need into an artifact directory that holds graphs and the checkpoint's settings.

    Args:
        runtimes: names from `RUNTIMES`.
        graphs: the manifest's entry of each graph, by precision.

    Returns:
        Weight files that now have a second name, by that name.
    """
    wanted = RUNTIMES[TRANSFORMERS_JS].graphs if TRANSFORMERS_JS in runtimes else ()
    named, names = second_names(directory, graphs, wanted)
    found = Package(directory, facts, named)
    for runtime in runtimes:
        for name, made in RUNTIMES[runtime].files.items():
            text = json.dumps(made(found), indent=2, ensure_ascii=False)
            (directory / name).write_text(text + "\n", "utf-8")
    return names
