"""The graph contract: names, dtypes and shapes of every graph's inputs and outputs, declared once as data.

Trace, manifest, runtime, packaging and tests read this declaration; no other module spells a tensor name.
A shape is a tuple of ints (fixed) and strings (named symbolic dims). `W = (1 + D) * H` is the width of wide features:
columns `[0, H)` hold the embedding, columns `[k*H, (k+1)*H)` the k-th of D DeepStack maps (zero on text rows).

Knows shapes only: nothing about weights, files or how a graph computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from .json_form import AtLeast, AtMost, OneOf

Shape = tuple[int | str, ...]

# Larger than any model's, and small enough that no number of a stranger's file exhausts the machine by itself.
LARGEST_SIZE = 2**31 - 1
MOST_LAYERS = 1000
LARGEST_PATCH, LARGEST_TEMPORAL_PATCH, LARGEST_MERGE = 128, 16, 6
MOST_FORCED_PIXELS = 1 << 24  # that every picture is enlarged to, however small: 4096 x 4096
CHANNELS = 3

# The tiers of the verification matrix, each with those whose cases it includes, so that its evidence proves them too.
# `release` adds to `quick` what is as large as what people use, `standard` what is more varied.
TIERS_INCLUDED = {
    "quick": ("quick",),
    "release": ("quick", "release"),
    "standard": ("quick", "standard"),
    "full": ("quick", "release", "standard", "full"),
}
TIERS = tuple(TIERS_INCLUDED)

# How a runtime chooses the encoder for a picture. The manifest names one rule; `runtime/encoders.py` implements them.
ANY_GRID = "any-grid"
ONLY_GRID = "only-grid"
BUCKET_RULE = "closest-aspect-then-smallest-sufficient"

VISION_ENCODER = "vision_encoder"
EMBED_TOKENS = "embed_tokens"
EMBEDDINGS = "embeddings"
DECODER = "decoder_model_merged"

# What to tell onnxruntime of each session: compute all that depends on weights alone when a graph is opened. From 1.32
# on it otherwise casts a bfloat16 head of more than 2^28 weights for every token.
FOLD_ANY_SIZE = ("optimization.constant_folding_max_output_size_in_bytes", "0")

PIXEL_VALUES = "pixel_values"
IMAGE_GRID_THW = "image_grid_thw"
IMAGE_FEATURES = "image_features"
INPUT_IDS = "input_ids"
INPUTS_EMBEDS = "inputs_embeds"
ATTENTION_MASK = "attention_mask"
POSITION_IDS = "position_ids"
NUM_LOGITS_TO_KEEP = "num_logits_to_keep"
LOGITS = "logits"
LAST_HIDDEN_STATE = "last_hidden_state"

# What a model's last hidden states are for.
TEXT, EMBEDDING, RERANKER = "text", "embedding", "reranker"
HEADS = (TEXT, EMBEDDING, RERANKER)
YES, NO = 0, 1  # the logits of a reranker

OUT_OF_RANGE = "activations exceed the range of float16"  # the message of a guard in float16 graphs


Size = Annotated[int, AtLeast(1), AtMost(LARGEST_SIZE)]
TokenId = Annotated[int, AtLeast(0), AtMost(LARGEST_SIZE)]


@dataclass(frozen=True)
class Facts:
    """What fixes every shape of one model: numbers of the checkpoint's config, without defaults, and the head."""

    model_type: str
    hidden_size: Size
    num_hidden_layers: Annotated[int, AtLeast(1), AtMost(MOST_LAYERS)]
    num_attention_heads: Size
    num_key_value_heads: Size
    head_dim: Size
    vocab_size: Size
    max_position_embeddings: Size
    num_deepstack: Annotated[int, AtLeast(0), AtMost(MOST_LAYERS)]
    in_channels: Annotated[int, OneOf((CHANNELS,))]
    patch_size: Annotated[int, AtLeast(1), AtMost(LARGEST_PATCH)]
    temporal_patch_size: Annotated[int, AtLeast(1), AtMost(LARGEST_TEMPORAL_PATCH)]
    spatial_merge_size: Annotated[int, AtLeast(1), AtMost(LARGEST_MERGE)]
    image_token_id: TokenId
    video_token_id: TokenId
    vision_start_token_id: TokenId
    vision_end_token_id: TokenId
    head: Annotated[str, OneOf(HEADS)] = TEXT

    @property
    def patch_dim(self) -> int:
        """Values of one flattened patch: `3 * 2 * 16 * 16 = 1536`."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def wide_size(self) -> int:
        """`W = (1 + D) * H`."""
        return (1 + self.num_deepstack) * self.hidden_size

    @property
    def merge_unit(self) -> int:
        """Patches that become one image token: `2 * 2 = 4`."""
        return self.spatial_merge_size**2


@dataclass(frozen=True)
class Tensor:
    """One graph input or output: `dtype` is a numpy name, or `"float"` for the graph's floating dtype.

    An input with a `default` is optional: the graph has that value as its initializer.
    """

    name: str
    dtype: str
    shape: Shape
    default: int | None = None


@dataclass(frozen=True)
class Graph:
    """One ONNX file: its stem and its tensors, in order."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def past_name(layer: int, part: str) -> str:
    """A layer's past `part`, "key" or "value"."""
    return f"past_key_values.{layer}.{part}"


def present_name(layer: int, part: str) -> str:
    """A layer's present `part`, "key" or "value"."""
    return f"present.{layer}.{part}"


def bucket_name(height: int, width: int) -> str:
    """Stem of a fixed encoder for a grid of `height` x `width` patches."""
    return f"{VISION_ENCODER}_{height}x{width}"


def vision_encoder(facts: Facts, name: str = VISION_ENCODER, grid: tuple[int, int] | None = None) -> Graph:
    """The vision encoder; `grid` = (h, w) patches binds it to one image of that size."""
    patches: int | str = "num_patches"
    images: int | str = "num_images"
    tokens: int | str = "num_image_tokens"
    if grid is not None:
        patches, images, tokens = grid[0] * grid[1], 1, grid[0] * grid[1] // facts.merge_unit
    return Graph(
        name,
        inputs=(
            Tensor(PIXEL_VALUES, "float32", (patches, facts.patch_dim)),
            Tensor(IMAGE_GRID_THW, "int64", (images, 3)),
        ),
        outputs=(Tensor(IMAGE_FEATURES, "float", (tokens, facts.wide_size)),),
    )


def embed_tokens(facts: Facts) -> Graph:
    """Token ids to wide rows; for runtimes that scatter image features themselves."""
    return Graph(
        EMBED_TOKENS,
        inputs=(Tensor(INPUT_IDS, "int64", ("batch_size", "sequence_length")),),
        outputs=(Tensor(INPUTS_EMBEDS, "float", ("batch_size", "sequence_length", facts.wide_size)),),
    )


def embeddings(facts: Facts) -> Graph:
    """Token ids and image features to wide rows, visual rows scattered in."""
    return Graph(
        EMBEDDINGS,
        inputs=(
            Tensor(INPUT_IDS, "int64", ("batch_size", "sequence_length")),
            Tensor(IMAGE_FEATURES, "float", ("num_image_tokens", facts.wide_size)),
        ),
        outputs=(Tensor(INPUTS_EMBEDS, "float", ("batch_size", "sequence_length", facts.wide_size)),),
    )


# What the decoder returns of each row, by head. An embedding model's hidden states are after the final norm, neither
# pooled nor normalized. A reranker's logits are float32 whatever the graph's dtype: scores are their difference.
DECODER_OUTPUTS: Mapping[str, Callable[[Facts], Tensor]] = {
    TEXT: lambda facts: Tensor(LOGITS, "float", ("batch_size", "num_logits", facts.vocab_size)),
    EMBEDDING: lambda facts: Tensor(LAST_HIDDEN_STATE, "float", ("batch_size", "num_logits", facts.hidden_size)),
    RERANKER: lambda facts: Tensor(LOGITS, "float32", ("batch_size", "num_logits", len((YES, NO)))),
}


def decoder_output(facts: Facts) -> Tensor:
    """What the decoder returns besides the cache."""
    return DECODER_OUTPUTS[facts.head](facts)


def decoder(facts: Facts, cache: str = "float") -> Graph:
    """Wide rows and a cache to what the model's head makes of them and the longer cache.

    `num_logits_to_keep` = n computes the head for the last n rows only; 0, its default, for all.

    Args:
        cache: dtype of keys and values, `"float"` or `"int8"`.
    """
    rows = ("batch_size", facts.num_key_value_heads)
    layers = range(facts.num_hidden_layers)
    past = tuple(
        Tensor(past_name(i, part), cache, (*rows, "past_sequence_length", facts.head_dim))
        for i in layers
        for part in ("key", "value")
    )
    present = tuple(
        Tensor(present_name(i, part), cache, (*rows, "total_sequence_length", facts.head_dim))
        for i in layers
        for part in ("key", "value")
    )
    return Graph(
        DECODER,
        inputs=(
            Tensor(INPUTS_EMBEDS, "float", ("batch_size", "sequence_length", facts.wide_size)),
            Tensor(ATTENTION_MASK, "int64", ("batch_size", "total_sequence_length")),
            Tensor(POSITION_IDS, "int64", (3, "batch_size", "sequence_length")),
            *past,
            Tensor(NUM_LOGITS_TO_KEEP, "int64", (), default=0),
        ),
        outputs=(decoder_output(facts), *present),
    )


def graph_of(name: str, facts: Facts, grid: tuple[int, int] | None, cache: str = "float") -> Graph:
    """The declaration of a graph by name; every other name is a vision encoder's.

    Args:
        grid: of a vision encoder, as `vision_encoder` takes it.
        cache: of the decoder, as `decoder` takes it.
    """
    if name == DECODER:
        return decoder(facts, cache)
    tables: Mapping[str, Callable[[Facts], Graph]] = {EMBED_TOKENS: embed_tokens, EMBEDDINGS: embeddings}
    return tables[name](facts) if name in tables else vision_encoder(facts, name, grid)


def differing_sides(graph: Graph, entry: Mapping[str, Any]) -> Iterator[str]:
    """Yield "inputs", "outputs": those of a graph that a manifest's entry does not have as declared.

    Args:
        entry: `{"inputs": {name: {"dtype", "shape"}}, "outputs": …}`.
    """
    for side, tensors in (("inputs", graph.inputs), ("outputs", graph.outputs)):
        shapes = {name: tuple(values["shape"]) for name, values in entry[side].items()}
        if shapes != {tensor.name: tensor.shape for tensor in tensors} or not all(
            _fits(tensor, entry[side][tensor.name]["dtype"]) for tensor in tensors
        ):
            yield side


def _fits(tensor: Tensor, dtype: str) -> bool:
    return dtype == tensor.dtype or (tensor.dtype == "float" and dtype.startswith(("float", "bfloat")))
