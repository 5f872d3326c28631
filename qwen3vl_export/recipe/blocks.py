"""The blocks of a recipe: strict, frozen models, each field explained once.

What concerns one block by itself is checked here; `model.py` puts the blocks together.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ..contract import MOST_FORCED_PIXELS
from .quantize import Quantization
from .strict import FieldConflict, StrictModel

SIZE_STEP = 32  # pixels of an image token's side: patch_size * spatial_merge_size = 16 * 2
MAX_ASPECT = 200  # Qwen3-VL's processor refuses pictures of a more extreme aspect ratio

SOURCE = r"^[^\x00-\x1f]{1,4000}$"  # a path or the name of a repository

GraphName = Literal["vision_encoder", "embed_tokens", "embeddings", "decoder_model_merged"]
GRAPH_NAMES: tuple[GraphName, ...] = ("vision_encoder", "embed_tokens", "embeddings", "decoder_model_merged")
PrecisionName = Literal["fp16", "int8", "q4", "q4f16"]  # suffixes that transformers.js knows
HeadName = Literal["text", "embedding", "reranker"]
ExpertsForm = Literal["auto", "operator"]
RuntimeName = Literal["onnxruntime", "onnxruntime-genai", "transformers.js"]
Pixels = Annotated[int, Field(gt=0, multiple_of=SIZE_STEP)]


def is_directory(source: str) -> bool:
    """Whether a source is a directory; a Hub id starts with neither a dot, a slash nor a tilde."""
    return source.startswith((".", "/", "~"))


class Checkpoint(StrictModel):
    """Where the weights come from."""

    source: str = Field(pattern=SOURCE)
    """A Hub id such as Qwen/Qwen3-VL-2B-Instruct, or a directory beside the recipe: ./checkpoints/tiny."""
    revision: str = Field(default="main", pattern=SOURCE)
    """Commit of a Hub id. `main` is resolved when building and recorded; `recipes pin` writes the commit here."""

    adapters: tuple[Annotated[str, Field(pattern=SOURCE)], ...] = ()
    """PEFT LoRA adapters to merge into the weights, in this order: directories beside the recipe, or Hub ids, with
    @COMMIT behind them if not main."""

    @property
    def is_local(self) -> bool:
        """Whether `source` is a directory."""
        return is_directory(self.source)


class Calibration(StrictModel):
    """The data of `algorithm: gptq`, of `smoothing: calibration` and of a quantized cache."""

    source: str = Field(pattern=r"^[./~][^\x00-\x1f]{0,3999}$")
    """A folder beside the recipe with prompts.jsonl and pictures: ./calibration."""


class Vision(StrictModel):
    """Which picture sizes the vision encoder takes."""

    grid: Literal["dynamic", "fixed", "buckets"] = "dynamic"
    """dynamic: one encoder, any size. fixed: one size. buckets: one encoder per size, the closest one is chosen."""
    sizes: tuple[tuple[Pixels, Pixels], ...] = ()
    """[height, width] in pixels, multiples of 32: exactly one for fixed, two or more for buckets, none for dynamic."""

    @model_validator(mode="after")
    def _sizes_fit_grid(self) -> Self:
        if self.grid == "dynamic" and self.sizes:
            raise FieldConflict("sizes", "a dynamic grid takes every size", "Remove sizes, or set grid: buckets")
        if self.grid == "fixed" and len(self.sizes) != 1:
            raise FieldConflict(
                "sizes", f"a fixed grid needs exactly one size, found {len(self.sizes)}", "Write sizes: [[384, 384]]"
            )
        if self.grid == "buckets" and len(self.sizes) < 2:
            raise FieldConflict(
                "sizes",
                f"buckets need two sizes or more, found {len(self.sizes)}",
                "Write sizes: [[256, 256], [512, 512]], or set grid: fixed",
            )
        for index, (height, width) in enumerate(self.sizes):
            if (height, width) in self.sizes[:index]:
                raise FieldConflict("sizes", f"[{height}, {width}] appears twice", "Remove one")
            if height * width > MOST_FORCED_PIXELS:
                raise FieldConflict(
                    "sizes", f"[{height}, {width}] is over {MOST_FORCED_PIXELS} pixels", "Choose a smaller size"
                )
            if max(height, width) > MAX_ASPECT * min(height, width):
                raise FieldConflict(
                    "sizes", f"[{height}, {width}] is over {MAX_ASPECT}:1", "Choose a less extreme size"
                )
        return self


class Cost(StrictModel):
    """What quantized weights may cost, on average over the positions of every check of logits."""

    mean_kl: float | None = Field(default=None, ge=0)
    """Most KL between the distributions of the next token, in nats."""
    top1_agreement: float | None = Field(default=None, ge=0, le=1)
    """Least share of positions with the same best token."""


class Parity(StrictModel):
    """How the artifact is compared with PyTorch."""

    matrix: Literal["quick", "release", "standard", "full"] = "standard"
    """Which cases `verify` runs by default."""
    tolerances: str = Field(default="", min_length=1)
    """Profile in parity_tests/harness/judging/tolerances.yaml; default that of the least precise part."""
    cost: Cost | None = None
    """Limits on what quantized weights cost, in place of the profile's; {} has none: the cost is measured only. Whether
    the graph is right does not depend on it."""
    held_out: bool = False
    """Also run the trained tiny model's exam; only checkpoints trained on drawn pictures can pass it."""


class Packaging(StrictModel):
    """Which runtimes the directory is laid out for."""

    runtimes: tuple[RuntimeName, ...] = Field(default=(), min_length=1)
    """Runtimes that must be able to load the directory; default every one that can load these graphs."""
    provider: Literal["cpu", "cuda"] = "cpu"
    """The provider that onnxruntime-genai's settings choose; other runtimes choose when they load."""
    tied_head: Literal["copy", "link"] = "copy"
    """How an output head that is the token table gets the decoder's name, under which transformers.js looks for it:
    copy stores it again; link makes a hard link, which takes no space, and which onnxruntime reads and the `onnx`
    package refuses."""


class Precision(StrictModel):
    """Another precision of the same graphs, described completely: it inherits neither dtype nor quantization."""

    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Floating type of weights and activations, as the recipe's."""
    quantization: Quantization = Quantization()
    """How the weights of each graph are stored, as the recipe's."""
    experts: ExpertsForm = "auto"
    """How a mixture of experts is computed, as the recipe's."""
    tolerances: str = Field(default="", min_length=1)
    """Profile in parity_tests/harness/judging/tolerances.yaml; default that of the least precise part."""
