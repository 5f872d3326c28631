"""Which devices of a browser load an artifact, as transformers.js runs it, and why others do not.

`parity_tests/downstream/test_browser_graphs.py` holds this against Chromium. Knows what a manifest says; runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..artifact import Artifact
from ..promise import TRANSFORMERS_JS
from . import transformers_js

WASM, WEBGPU = "WebAssembly", "WebGPU"
LARGEST_IN_WASM = 7 << 29  # bytes of weights: of its 4 GiB, activations and logits take the rest. 3.7 GiB ran out of it
NEEDS_HALF = "with `shader-f16`"


def browser_support(artifact: Artifact) -> Mapping[str, str]:
    """What a browser says to one precision of an artifact, by device: `yes`, `yes, with …` or `no: …`; empty if it is
    not packaged for transformers.js."""
    recipe = artifact.manifest.recipe
    if TRANSFORMERS_JS not in recipe["packaging"]["runtimes"]:
        return {}
    if recipe["dtype"] == "bfloat16":
        return dict.fromkeys((WASM, WEBGPU), "no: weights in bfloat16, which only Node casts")
    return {
        WASM: "yes" if weight_bytes(artifact) <= LARGEST_IN_WASM else "no: weights above 3.5 GiB, of 4 with all else",
        WEBGPU: f"yes, {NEEDS_HALF}" if recipe["dtype"] == "float16" else "yes",
    }


def describe(artifact: Artifact) -> str:
    """What a browser says to every precision, on one line; empty if it is not packaged for transformers.js."""
    lines = (
        f"{precision.precision or 'default'}: {', '.join(f'{device} {answer}' for device, answer in support.items())}"
        for precision in artifact.every_precision
        if (support := browser_support(precision))
    )
    return "; ".join(lines)


def loads(support: Mapping[str, str]) -> bool:
    """Whether any device loads it."""
    return any(answer.startswith("yes") for answer in support.values())


def weight_bytes(artifact: Artifact) -> int:
    """Bytes of the weights of the graphs that transformers.js loads."""
    graphs, files = artifact.manifest.graphs, artifact.manifest.files
    return sum(files[file].bytes for graph in transformers_js.GRAPHS for file in graphs[graph]["data"])
