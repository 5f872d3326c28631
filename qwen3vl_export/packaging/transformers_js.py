"""What transformers.js reads: three files of the checkpoint, completed where it has no default.

transformers (Python) reads the same files; it ignores or already assumes every key added to them. Source: its
`models/session.js` (`transformers.js_config`), `utils/dtypes.js` (suffixes) and `image_processors_utils.js`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import contract
from ..artifact import data_name
from ..errors import BuildError
from ..promise import suffixed
from .package import PREPROCESSOR, Package

GRAPHS = (contract.VISION_ENCODER, contract.EMBED_TOKENS, contract.DECODER)
LARGEST_FILE = 2_000_000_000  # browsers hold a file in one buffer, of less than 2^31 bytes in some
DTYPE = "fp32"  # selects nothing but the suffix '': it loads `<graph>.onnx`, whatever dtype that has

LIMITS = (
    "One picture in a prompt: its processor fails on several (`Cannot read properties of undefined`, or `offset is out "
    "of bounds`).",
    "A prompt without a picture goes wrong from the second token on: it continues from the wrong position "
    "(`_get_text_only_rope_index` adds the prompt's length instead of subtracting it). Pass "
    "`image_grid_thw: new Tensor('int64', new BigInt64Array(0), [0, 3])` to `generate` as well.",
    "It resizes pictures with sharp in Node and with a canvas in browsers. Where sides are rounded to 32 pixels, it "
    "is off by less than one 8-bit step on average over a picture. A picture above the pixel budget is shrunk without "
    "smoothing, so small print becomes illegible (12 steps on average on a page of text): shrink large pictures first.",
    "It rounds half up, as onnxruntime-genai does; a picture with a side shorter than 32 pixels gets other patches.",
    "It has no video for this model.",
    "In browsers it loads no weights in bfloat16 (`Could not find an implementation for Cast`), which Node does: build "
    "with `--precision web`, `fp16`, `int8`, `int4` or `fp32`.",
    "In WebGPU it takes no cache in 8 bits (`Unsupported data type: int8`), which WebAssembly and Node do.",
    "In WebAssembly, weights and all that is computed share 4 GiB: weights above 3.5 GiB do not fit, and above 2 GiB a "
    "picture much larger than 512x512 pixels runs out of it (`std::bad_alloc`). Load float16 weights with "
    "`session_options: { graphOptimizationLevel: 'layout' }`, or onnxruntime restores the tower's in float32 and keeps "
    "those.",
    "Activations in float16 (`web`, `fp16`) need an adapter with `shader-f16` in WebGPU.",
)


def config(package: Package) -> dict[str, Any]:
    """`config.json` with the number of data files of each graph.

    Raises:
        BuildError: weights are in a file of another name than the one it looks for.
    """
    chunks: dict[str, int] = {}
    for precision, graphs in package.graphs.items():
        for graph in GRAPHS:
            name = suffixed(graph, precision)
            files = [Path(file).name for file in graphs[graph]["data"]]
            expected = [data_name(name, index) for index in range(len(files))]
            if files != expected:
                raise BuildError(
                    f"{name}.onnx: its weights are in {', '.join(files)}, transformers.js looks for "
                    f"{', '.join(expected)}",
                    "Leave transformers.js out of packaging.runtimes",
                )
            chunks[f"{name}.onnx"] = len(files)
    settings = package.settings("config.json")
    return {**settings, "transformers.js_config": {"dtype": DTYPE, "use_external_data_format": chunks}}


def preprocessor(package: Package) -> dict[str, Any]:
    """`preprocessor_config.json`: it does not normalize by default, and resizes bilinearly."""
    return {"do_normalize": True, "resample": 3, **package.settings(PREPROCESSOR)}  # 3 is bicubic


def tokenizer(package: Package) -> dict[str, Any]:
    """`tokenizer_config.json` with the chat template, the only place where its processor of this model reads it.

    It pads on the right by default. Of another head than that for answers the last token counts, which its pipeline
    `feature-extraction` takes from the last column: padding goes to the left.
    """
    settings = package.settings("tokenizer_config.json")
    template = package.chat_template()
    if template is not None:
        settings["chat_template"] = template
    if package.facts.head != contract.TEXT:
        settings["padding_side"] = "left"
    return settings
