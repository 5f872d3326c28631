"""What onnxruntime-genai reads: `genai_config.json` and the settings of its image processor.

It refuses a directory with any key it does not know, so none may be added. It knows nothing about DeepStack: its
`hidden_size` is the width of the wide rows, which it passes unread from the vision encoder through the embeddings to
the decoder. Keys: https://onnxruntime.ai/docs/genai/reference/config.html
"""

from __future__ import annotations

import math
from typing import Any

from .. import contract
from ..promise import GRAPH_DIR, second_decoder
from .package import PREPROCESSOR, Package

CONFIG = "genai_config.json"
PROCESSOR = "genai_processor.json"  # processor_config.json is transformers' name

LIMITS = (
    "Releases before 0.18 mix up the patches of pictures of different sizes in one prompt, and answer wrongly without "
    "an error. Several pictures of equal size are right in all of them.",
    "Prompts with pictures go one by one: its processor joins several prompts into a single row.",
    "Text prompts of one batch must be of equal length: the padding is counted into the positions, and shorter prompts "
    "answer wrongly.",
    "Pictures belong into the first set_inputs of a generator. A picture in a later turn is not encoded, and the "
    "embeddings graph refuses to compute (`guard: the number of image and video pad tokens differs from the rows of "
    "image_features`). Start a new generator with the whole conversation.",
    "It rounds half up where transformers rounds half to even: a side half-way between two multiples of 32 pixels "
    "becomes 32 pixels longer (600x400 pixels: 26x38 patches, in transformers 24x38). At all other "
    "sizes the grids are transformers' own and pixels are equal or up to two 8-bit steps off.",
    "A picture with a side shorter than 32 pixels is enlarged in its own way and gets other patches.",
    "It drops transparency, where transformers lays the picture over white: flatten pictures first.",
    "It ignores the orientation in a photograph's EXIF data, which transformers applies: turn pictures upright first.",
    "It has no video.",
)

# CUDA's has no options that must be set. On a machine without a GPU `og.Config.clear_providers` goes back to the CPU.
PROVIDER_OPTIONS: dict[str, list[dict[str, dict[str, str]]]] = {"cpu": [], "cuda": [{"cuda": {}}]}
SEARCH = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")


def config(package: Package) -> dict[str, Any]:
    """`genai_config.json`."""
    facts = package.facts
    generation = package.settings("generation_config.json")
    return {
        "model": {
            "type": "qwen3_vl",
            "vocab_size": facts.vocab_size,
            "context_length": facts.max_position_embeddings,
            **{
                name: generation[name]
                for name in ("bos_token_id", "eos_token_id", "pad_token_id")
                if name in generation
            },
            # Without any one of these three, positions are wrong without an error.
            "image_token_id": facts.image_token_id,
            "video_token_id": facts.video_token_id,
            "vision_start_token_id": facts.vision_start_token_id,
            "vision": {
                "filename": _file(contract.VISION_ENCODER),
                "config_filename": PROCESSOR,
                "spatial_merge_size": facts.spatial_merge_size,
                "patch_size": facts.patch_size,
                "inputs": _same_names(contract.PIXEL_VALUES, contract.IMAGE_GRID_THW),
                "outputs": _same_names(contract.IMAGE_FEATURES),
            },
            "embedding": {
                "filename": _file(contract.EMBEDDINGS),
                "inputs": _same_names(contract.INPUT_IDS, contract.IMAGE_FEATURES),
                "outputs": _same_names(contract.INPUTS_EMBEDS),
            },
            "decoder": {
                "filename": _decoder_file(package),
                "hidden_size": facts.wide_size,
                "head_size": facts.head_dim,
                "num_attention_heads": facts.num_attention_heads,
                "num_key_value_heads": facts.num_key_value_heads,
                "num_hidden_layers": facts.num_hidden_layers,
                # Those of all three sessions, because the other two have none of their own.
                "session_options": {
                    "provider_options": PROVIDER_OPTIONS[package.provider],
                    **dict([contract.FOLD_ANY_SIZE]),
                },
                "inputs": {
                    **_same_names(contract.INPUTS_EMBEDS, contract.ATTENTION_MASK, contract.POSITION_IDS),
                    "past_key_names": _every_layer(contract.past_name(0, "key")),
                    "past_value_names": _every_layer(contract.past_name(0, "value")),
                },
                "outputs": {
                    **_same_names(contract.LOGITS),
                    "present_key_names": _every_layer(contract.present_name(0, "key")),
                    "present_value_names": _every_layer(contract.present_name(0, "value")),
                },
            },
        },
        "search": {
            **{name: generation[name] for name in SEARCH if name in generation},
            "max_length": facts.max_position_embeddings,
            "past_present_share_buffer": False,  # the decoder returns a longer cache than it takes
        },
    }


def processor(package: Package) -> dict[str, Any]:
    """The image processor: decode, resize like `smart_resize` of transformers, normalize, split into patches."""
    facts = package.facts
    pixels = package.settings(PREPROCESSOR)
    patches = {"patch_size": facts.patch_size, "merge_size": facts.spatial_merge_size}
    limits = {"min_pixels": pixels["size"]["shortest_edge"], "max_pixels": pixels["size"]["longest_edge"]}
    # Its Rescale divides by 255; another factor is a factor of mean and deviation.
    factor = 1.0 if "rescale_factor" not in pixels else 1 / (255 * pixels["rescale_factor"])
    factor = 1.0 if math.isclose(factor, 1) else factor
    statistics = {
        "mean": [factor * value for value in pixels["image_mean"]],
        "std": [factor * value for value in pixels["image_std"]],
    }
    steps: list[tuple[str, str, dict[str, Any]]] = [
        ("decode_image", "DecodeImage", {"color_space": "RGB"}),
        ("convert_to_rgb", "ConvertRGB", {}),
        ("resize", "Resize", {"smart_resize": 1, **limits, **patches}),
        ("rescale", "Rescale", {}),
        ("normalize", "Normalize", {**statistics, "qwen3_vl": 1}),
        ("patch_image", "PatchImage", {**patches, "temporal_patch_size": facts.temporal_patch_size}),
    ]
    operations = [{"name": name, "type": kind, **({"attrs": attrs} if attrs else {})} for name, kind, attrs in steps]
    return {
        "processor": {
            "name": "qwen3_vl_image_processor",
            "transforms": [{"operation": operation} for operation in operations],
        }
    }


def _file(graph: str) -> str:
    return f"{GRAPH_DIR}/{graph}.onnx"


def _decoder_file(package: Package) -> str:
    """The decoder that does not require what it does not know."""
    second = second_decoder(_file(contract.DECODER))
    return second if (package.directory / second).is_file() else _file(contract.DECODER)


def _same_names(*names: str) -> dict[str, str]:
    """Its names of tensors -> the contract's; they are the same."""
    return {name: name for name in names}


def _every_layer(first: str) -> str:
    """`past_key_values.0.key` of layer 0 as the pattern for all layers."""
    return first.replace("0", "%d", 1)
