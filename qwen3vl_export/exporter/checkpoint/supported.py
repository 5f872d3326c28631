"""Which values of a configuration are exported: those that transformers computes and the graphs do too.

Every field of transformers' configuration classes is honoured by tracing transformers' own modules, or refused here by
name. Knows configurations; nothing about files or weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...contract import LARGEST_MERGE, LARGEST_PATCH, LARGEST_SIZE, LARGEST_TEMPORAL_PATCH, MOST_LAYERS
from ...errors import CheckpointError
from .rotary import text_rotary, vision_rotary

ACTIVATIONS = (  # of transformers' `ACT2FN`: those without parameters of their own
    "gelu",
    "gelu_10",
    "gelu_accurate",
    "gelu_fast",
    "gelu_new",
    "gelu_python",
    "gelu_python_tanh",
    "gelu_pytorch_tanh",
    "hardswish",
    "laplace",
    "leaky_relu",
    "linear",
    "mish",
    "quick_gelu",
    "relu",
    "relu2",
    "relu6",
    "sigmoid",
    "silu",
    "sqrtsoftplus",
    "swish",
    "tanh",
)
EXPERT_ACTIVATIONS = ("silu", "swish")
MERGE_SIZES = range(1, LARGEST_MERGE + 1)
TEXT_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
EXPERT_SIZES = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step")
VISION_SIZES = (
    "depth",
    "hidden_size",
    "intermediate_size",
    "num_heads",
    "patch_size",
    "temporal_patch_size",
    "out_hidden_size",
    "num_position_embeddings",
)
LARGEST = {  # what a typing mistake would ask for; LARGEST_SIZE of everything else
    "num_hidden_layers": MOST_LAYERS,
    "depth": MOST_LAYERS,
    "num_experts": 100_000,
    "patch_size": LARGEST_PATCH,
    "temporal_patch_size": LARGEST_TEMPORAL_PATCH,
}
TOKEN_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
ANY_LAYER = "full_attention"


def check_supported(path: Path, config: Any) -> None:
    """Compare a configuration with what is exported.

    Args:
        path: of its file, for errors.
        config: `Qwen3VLConfig` or `Qwen3VLMoeConfig`.

    Raises:
        CheckpointError: it asks for something else; names the key.
    """
    for reason in _reasons_to_refuse(config):
        raise CheckpointError(f"{path}: {reason}", "Use a Qwen3-VL checkpoint, or correct the value if it is a mistake")


def _reasons_to_refuse(config: Any) -> Iterator[str]:
    text, vision = config.text_config, config.vision_config
    for section, values in (("", config), ("text_config.", text), ("vision_config.", vision)):
        if getattr(values, "is_heterogeneous", False):
            yield f"{section}per_layer_config is set, all layers are exported alike"
        if values.is_encoder_decoder or not values.return_dict:
            yield f"{section}is_encoder_decoder or return_dict differs from its default, transformers' model needs it"
    experts = EXPERT_SIZES if config.model_type == "qwen3_vl_moe" else ()
    for section, values, names in (
        ("text_config", text, (*TEXT_SIZES, *experts)),
        ("vision_config", vision, VISION_SIZES),
    ):
        for name in names:
            value = getattr(values, name)
            largest = LARGEST.get(name, LARGEST_SIZE)
            if not isinstance(value, int) or not 1 <= value <= largest:
                yield f"{section}.{name} is {value!r}, a whole number from 1 to {largest} is needed"
    yield from _text_reasons(text)
    yield from _attention_reasons(text)
    yield from _vision_reasons(vision, text.hidden_size)
    yield from _token_reasons(config)


def _text_reasons(text: Any) -> Iterator[str]:
    if text.num_attention_heads % text.num_key_value_heads:
        yield (
            f"text_config.num_attention_heads is {text.num_attention_heads}, not a multiple of num_key_value_heads "
            f"{text.num_key_value_heads}"
        )
    if not 0 <= text.rms_norm_eps < math.inf:
        yield f"text_config.rms_norm_eps is {text.rms_norm_eps}, a number from 0 is needed"
    is_mixture = text.model_type == "qwen3_vl_moe_text"
    activations, kind = (EXPERT_ACTIVATIONS, "experts") if is_mixture else (ACTIVATIONS, "text layers")
    if is_mixture and text.num_experts_per_tok > text.num_experts:
        yield f"text_config.num_experts_per_tok is {text.num_experts_per_tok}, of {text.num_experts} experts"
    if text.hidden_act not in activations:
        yield f"text_config.hidden_act is {text.hidden_act!r}, {kind} are exported with {', '.join(activations)}"
    pad = text.pad_token_id
    if pad is not None and not -text.vocab_size <= pad < text.vocab_size:
        yield f"text_config.pad_token_id is {pad}, vocab_size {text.vocab_size}"
    try:
        rotary = text_rotary(text)
    except Exception as error:  # of any class, for lack of checks in transformers
        yield (
            f"text_config's rotary settings ask for rope_type {text.rope_parameters.get('rope_type')!r}, which "
            f"transformers cannot compute from them ({type(error).__name__}: {' '.join(str(error).split())})"
        )
        return
    if not rotary.inv_freq.isfinite().all() or not math.isfinite(rotary.attention_scaling):
        yield "text_config's rotary settings give frequencies or a factor that are not finite"
    if 2 * len(rotary.inv_freq) != text.head_dim:
        yield (
            f"text_config's rotary settings rotate {2 * len(rotary.inv_freq)} of head_dim {text.head_dim} "
            "(partial_rotary_factor), transformers' attention needs all"
        )
    sections = rotary.mrope_section
    if not isinstance(sections, list) or len(sections) != 3 or not all(isinstance(n, int) and n >= 0 for n in sections):
        yield f"text_config's mrope_section is {sections!r}, three whole numbers are needed"


def _attention_reasons(text: Any) -> Iterator[str]:
    """Settings that transformers' causal mask and cache obey, whatever the model."""
    kinds = getattr(text, "layer_types", None)
    if kinds is not None and (not isinstance(kinds, list) or set(kinds) != {ANY_LAYER}):
        yield f"text_config.layer_types are not all {ANY_LAYER}, which alone is exported"
    if kinds is None:
        for name in ("sliding_window", "attention_chunk_size"):
            if (value := getattr(text, name, None)) is not None:
                yield f"text_config.{name} is {value!r}, full attention alone is exported"
    if getattr(text, "kv_sharing_modes", None) is not None:
        yield "text_config.kv_sharing_modes is set, every layer is exported with a cache of its own"
    if not getattr(text, "is_causal", True):
        yield "text_config.is_causal is false, causal attention alone is exported"


def _vision_reasons(vision: Any, text_width: int) -> Iterator[str]:
    if vision.spatial_merge_size not in MERGE_SIZES:
        yield (
            f"vision_config.spatial_merge_size is {vision.spatial_merge_size}, exported are "
            f"{MERGE_SIZES.start} to {MERGE_SIZES.stop - 1}"
        )
    if vision.in_channels != 3:
        yield f"vision_config.in_channels is {vision.in_channels}, pictures have 3"
    if vision.hidden_size % vision.num_heads or vision.hidden_size // vision.num_heads % 4:
        yield (
            f"vision_config.hidden_size is {vision.hidden_size}, not a multiple of 4 for each of {vision.num_heads} "
            "heads, which its rotary embedding needs"
        )
    if vision.out_hidden_size != text_width:
        yield f"vision_config.out_hidden_size is {vision.out_hidden_size}, text_config.hidden_size {text_width}"
    taps = list(vision.deepstack_visual_indexes)
    if len(set(taps)) != len(taps) or not all(0 <= tap < vision.depth for tap in taps):
        yield f"vision_config.deepstack_visual_indexes are {taps}, different ones of {vision.depth} layers are needed"
    if vision.hidden_act not in ACTIVATIONS:
        yield f"vision_config.hidden_act is {vision.hidden_act!r}, the tower is exported with {', '.join(ACTIVATIONS)}"
    try:
        rotary = vision_rotary(vision)
    except Exception as error:  # of any class, for lack of checks in transformers
        yield f"vision_config's rotary settings cannot be computed by transformers ({' '.join(str(error).split())})"
        return
    if 4 * len(rotary.inv_freq) * vision.num_heads != vision.hidden_size:
        yield f"vision_config.head_dim is {vision.head_dim}, the tower's heads have hidden_size / num_heads"


def _token_reasons(config: Any) -> Iterator[str]:
    for name in TOKEN_IDS:
        token = getattr(config, name)
        if not 0 <= token < config.text_config.vocab_size:
            yield f"{name} is {token}, vocab_size {config.text_config.vocab_size}"
    if config.image_token_id == config.video_token_id:
        yield f"image_token_id and video_token_id are both {config.image_token_id}"
