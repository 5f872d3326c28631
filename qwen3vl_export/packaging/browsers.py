"""Which devices of a browser load an artifact, as transformers.js runs it, and why others do not.

`parity_tests/downstream/test_browser_graphs.py` holds this against Chromium. Knows what a manifest says; runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..artifact import Artifact
from ..promise import TRANSFORMERS_JS, cache_dtype
from . import transformers_js

WASM, WEBGPU = "WebAssembly", "WebGPU"
# Bytes of weights. All that is computed shares its 4 GiB: 3.7 GiB of weights ran out of it, and 2.3 answer about a
# picture of 512x512 pixels, not of 1024x1024.
LARGEST_IN_WASM, TIGHT_IN_WASM = 7 << 29, 2 << 30
YES, NO = "yes", "no"
NEEDS_HALF = "with `shader-f16`"


def browser_support(artifact: Artifact) -> Mapping[str, str]:
    """Whether a browser loads one precision of an artifact, by device: `yes`, `yes, …`, `no: …` or `untested: …`; empty
    if the artifact is not packaged for transformers.js."""
    recipe = artifact.manifest.recipe
    if TRANSFORMERS_JS not in recipe["packaging"]["runtimes"]:
        return {}
    if recipe["dtype"] == "bfloat16":
        return dict.fromkeys((WASM, WEBGPU), f"{NO}: weights in bfloat16, which only Node casts")
    size = weight_bytes(artifact)
    wasm = webgpu = YES
    if size > LARGEST_IN_WASM:
        large = "weights above 3.5 GiB"
        wasm, webgpu = f"{NO}: {large}, of 4 for all", f"untested: {large}"
    elif size > TIGHT_IN_WASM:
        wasm = f"{YES}, for pictures up to about 512x512 pixels: weights above 2 GiB, of 4 for all"
    if recipe["dtype"] == "float16":
        webgpu += f", {NEEDS_HALF}"
    if cache_dtype(recipe) != "float":
        webgpu = f"{NO}: a cache in 8 bits, which only WebAssembly takes"
    return {WASM: wasm, WEBGPU: webgpu}


def describe(artifact: Artifact) -> str:
    """What is said of every precision, on one line; empty if the artifact is not packaged for transformers.js."""
    lines = (
        f"{precision.precision or 'default'}: {', '.join(f'{device} {answer}' for device, answer in support.items())}"
        for precision in artifact.every_precision
        if (support := browser_support(precision))
    )
    return "; ".join(lines)


def may_load(support: Mapping[str, str]) -> bool:
    """Whether there is a device that is not known to refuse."""
    return any(not answer.startswith(NO) for answer in support.values())


def weight_bytes(artifact: Artifact) -> int:
    """Bytes of the weights of the graphs that transformers.js loads."""
    graphs, files = artifact.manifest.graphs, artifact.manifest.files
    loaded = [graphs[name] for name in transformers_js.GRAPHS if name in graphs]  # a stranger's manifest may lack some
    return sum(files[file].bytes for graph in loaded for file in graph["data"])
