"""The model of a recipe: strict, frozen models, each field explained once.

The field descriptions become the JSON Schema that editors read and the table in docs/recipes.md. Rules that span
several fields are in `rules.py`. Knows nothing about YAML, files on disk or the checkpoint.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from ..contract import DECODER, MOST_FORCED_PIXELS
from ..hub import SCHEME
from ..packaging import RUNTIMES
from .quantize import CacheSettings, FloatCache, MethodSettings, Quantization
from .rules import check_fields
from .strict import FieldConflict, StrictModel

SIZE_STEP = 32  # pixels of an image token's side: patch_size * spatial_merge_size = 16 * 2
MAX_ASPECT = 200  # Qwen3-VL's processor refuses pictures of a more extreme aspect ratio

SOURCE = r"^[^\x00-\x1f]{1,4000}$"  # a path or the name of a repository

GraphName = Literal["vision_encoder", "embed_tokens", "embeddings", "decoder_model_merged"]
GRAPH_NAMES: tuple[GraphName, ...] = ("vision_encoder", "embed_tokens", "embeddings", "decoder_model_merged")
PrecisionName = Literal["fp16", "int8", "q4", "q4f16"]  # suffixes that transformers.js knows
DEFAULT = ""  # the precision of the recipe itself, whose files have no suffix
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

    @property
    def has_limits(self) -> bool:
        """Whether anything is limited."""
        return self.mean_kl is not None or self.top1_agreement is not None


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


class Recipe(StrictModel):
    """One build, described completely: equal recipes and checkpoints give equal bytes."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,99}$")
    """Name of the artifact and default directory under artifacts/; default the file's name. Never inherited."""
    description: str = ""
    """One line for `recipes list`. Never inherited."""
    checkpoint: Checkpoint
    """Where the weights come from. A recipe that changes `source` does not inherit the revision."""
    target: Literal["ort", "portable"] = "ort"
    """ort: onnxruntime's fused operators. portable: standard ONNX operators only."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Floating type of weights and activations. bfloat16 applies to the weights only: computing is in float32."""
    head: HeadName | None = None
    """text: answers. embedding: a vector for each input. reranker: a score for each pair. Default: as the checkpoint
    says."""
    vision: Vision = Vision()
    """Which picture sizes the vision encoder takes."""
    graphs: tuple[GraphName, ...] = Field(default=GRAPH_NAMES, min_length=1)
    """Graphs to export; default all of them."""
    quantization: Quantization = Quantization()
    """How the weights of each graph are stored."""
    experts: ExpertsForm = "auto"
    """How a mixture of experts is computed. auto: as suits CPUs, in float16 one expert after another. operator: by one
    operator in float16 too, as GPUs have it (`target: ort`)."""
    precisions: dict[PrecisionName, Precision] = Field(default={})
    """Further precisions in the same directory, under the suffixes transformers.js knows."""
    calibration: Calibration | None = None
    """Prompts to calibrate weights and the cache with."""
    parity: Parity
    """How the artifact is compared with PyTorch."""
    packaging: Packaging = Packaging()
    """Which runtimes the directory is laid out for."""
    min_onnxruntime: str = Field(default="1.23.0", pattern=r"^\d+\.\d+(\.\d+)?$")
    """Oldest onnxruntime the artifact may be loaded with."""

    _directory: Path = PrivateAttr(default_factory=Path)
    _files: tuple[Path, ...] = PrivateAttr(default=())

    @property
    def checkpoint_dir(self) -> Path | None:
        """The local checkpoint directory, or None where `checkpoint.source` is a Hub id."""
        return self._directory / os.path.expanduser(self.checkpoint.source) if self.checkpoint.is_local else None

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters of the checkpoint: absolute paths of directories, and Hub ids after `hf://`."""
        return tuple(
            str((self._directory / os.path.expanduser(adapter)).absolute())
            if is_directory(adapter)
            else f"{SCHEME}{adapter}"
            for adapter in self.checkpoint.adapters
        )

    @property
    def calibration_dir(self) -> Path | None:
        """The folder of calibration prompts, if one is named."""
        return self._directory / os.path.expanduser(self.calibration.source) if self.calibration is not None else None

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Files and directories of this machine that a build reads: recipes, checkpoint, calibration prompts."""
        named = (self.checkpoint_dir, self.calibration_dir)
        adapters = (Path(adapter) for adapter in self.adapters if is_directory(adapter))
        return (*self._files, *(path for path in named if path is not None), *adapters)

    @property
    def compute_dtype(self) -> Literal["float32", "float16"]:
        """Floating type of activations, inputs and outputs: onnxruntime's CPU provider has no bfloat16 kernels."""
        return "float16" if self.dtype == "float16" else "float32"

    def quantization_of(self, graph: str) -> MethodSettings:
        """How the weights of one graph are stored; embed_tokens and embeddings share a table, encoders a tower."""
        stem = "vision_encoder" if graph.startswith("vision_encoder") else graph
        quantization: MethodSettings = getattr(self.quantization, "embeddings" if stem == "embed_tokens" else stem)
        return quantization

    @property
    def missing_graphs(self) -> tuple[str, ...]:
        """Graphs that are not exported."""
        return tuple(name for name in GRAPH_NAMES if name not in self.graphs)

    @property
    def is_calibrated(self) -> bool:
        """Whether prompts are run through the decoder: for its weights or for its cache."""
        weights = getattr(self.quantization_of(DECODER), "algorithm", "") == "gptq"
        return DECODER in self.graphs and (weights or self.quantization.cache.method != "none")

    @property
    def every_precision(self) -> tuple[str, ...]:
        """Names of all precisions, the default one first."""
        return (DEFAULT, *self.precisions)

    def at(self, precision: str) -> Recipe:
        """The recipe of one of its precisions alone."""
        if precision == DEFAULT:
            return self.model_copy(update={"precisions": {}})
        settings = next(value for name, value in self.precisions.items() if name == precision)
        parity = self.parity.model_copy(update={"tolerances": settings.tolerances})
        changes = {
            "dtype": settings.dtype,
            "quantization": settings.quantization,
            "experts": settings.experts,
            "parity": parity,
        }
        return self.model_copy(update={**changes, "precisions": {}})

    def with_head(self, head: str) -> Recipe:
        """The recipe for a checkpoint of this head, without the runtimes that do not know it."""
        runtimes = tuple(name for name in self.packaging.runtimes if head in RUNTIMES[name].heads)
        packaging = self.packaging.model_copy(update={"runtimes": runtimes})
        return self.model_copy(update={"head": head, "packaging": packaging})

    def file_precision(self, precision: str, graph: str) -> str:
        """The precision whose file a graph of `precision` uses: the first that stores the graph the same way."""
        weight_format = self.at(precision)._weight_format(graph)
        return next(name for name in self.every_precision if self.at(name)._weight_format(graph) == weight_format)

    def _weight_format(self, graph: str) -> tuple[str, str, CacheSettings, MethodSettings]:
        """What the bytes of a graph depend on besides checkpoint and target."""
        experts, cache = (self.experts, self.quantization.cache) if graph == DECODER else ("auto", FloatCache())
        return self.dtype, experts, cache, self.quantization_of(graph)

    def to_json_dict(self) -> dict[str, Any]:
        """Plain JSON values with every default filled in. An absolute source keeps its last name only: the same recipe
        and checkpoint must give the same bytes wherever they are stored."""
        values: dict[str, Any] = self.model_dump(mode="json")
        for block in (values["checkpoint"], values["calibration"] or {}):
            if "source" in block:
                block["source"] = _without_machine(block["source"])
        values["checkpoint"]["adapters"] = [_without_machine(adapter) for adapter in self.checkpoint.adapters]
        return values

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        check_fields(self)
        return self


def _without_machine(source: str) -> str:
    """A source without an absolute path."""
    return "./" + Path(source).name if source.startswith(("/", "~")) else source
