"""What a recipe says: strict, frozen models, each field explained once.

The field descriptions become the JSON Schema editors read and the table in docs/recipes.md. Rules that span several
fields raise `Impossible`, which names the field at fault. Knows nothing about YAML, files on disk or the checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from ..packaging import RUNTIMES, loadable_by
from .quantize import PROFILES, Quantization, Quantize, profile_of
from .strict import Impossible, Strict

SIZE_STEP = 32  # pixels of one image token's side: patch_size * spatial_merge_size = 16 * 2
MAX_ASPECT = 200  # the processor of Qwen3-VL refuses longer pictures

GraphName = Literal["vision_encoder", "embed_tokens", "embeddings", "decoder_model_merged"]
GRAPH_NAMES: tuple[GraphName, ...] = ("vision_encoder", "embed_tokens", "embeddings", "decoder_model_merged")
PrecisionName = Literal["fp16", "int8", "q4", "q4f16"]  # suffixes that transformers.js knows
DEFAULT = ""  # names the precision of the recipe itself, whose files have no suffix
RuntimeName = Literal["onnxruntime", "onnxruntime-genai", "transformers.js"]
Pixels = Annotated[int, Field(gt=0, multiple_of=SIZE_STEP)]


class Checkpoint(Strict):
    """Where the weights come from."""

    source: str = Field(min_length=1)
    """A Hub id such as Qwen/Qwen3-VL-2B-Instruct, or a directory beside the recipe: ./checkpoints/tiny."""
    revision: str = Field(default="main", min_length=1)
    """Commit of a Hub id. `main` is resolved when building and recorded; `recipes pin` writes the commit here."""

    @property
    def is_local(self) -> bool:
        """Whether `source` is a directory; a Hub id starts with neither a dot, a slash nor a tilde."""
        return self.source.startswith((".", "/", "~"))


class Calibration(Strict):
    """What `algorithm: gptq` looks at."""

    source: str = Field(pattern=r"^[./~]")
    """A folder beside the recipe with prompts.jsonl and pictures: ./calibration."""


class Vision(Strict):
    """Which picture sizes the vision encoder takes."""

    grid: Literal["dynamic", "fixed", "buckets"] = "dynamic"
    """dynamic: one encoder, any size. fixed: one size. buckets: one encoder per size, the closest one is chosen."""
    sizes: tuple[tuple[Pixels, Pixels], ...] = ()
    """[height, width] in pixels, multiples of 32: exactly one for fixed, two or more for buckets, none for dynamic."""

    @model_validator(mode="after")
    def _sizes_fit_grid(self) -> Self:
        if self.grid == "dynamic" and self.sizes:
            raise Impossible("sizes", "a dynamic grid takes every size", "Remove sizes, or set grid: buckets")
        if self.grid == "fixed" and len(self.sizes) != 1:
            raise Impossible(
                "sizes", f"a fixed grid needs exactly one size, found {len(self.sizes)}", "Write sizes: [[384, 384]]"
            )
        if self.grid == "buckets" and len(self.sizes) < 2:
            raise Impossible(
                "sizes",
                f"buckets need two sizes or more, found {len(self.sizes)}",
                "Write sizes: [[256, 256], [512, 512]], or set grid: fixed",
            )
        for index, (height, width) in enumerate(self.sizes):
            if (height, width) in self.sizes[:index]:
                raise Impossible("sizes", f"[{height}, {width}] appears twice", "Remove one")
            if max(height, width) > MAX_ASPECT * min(height, width):
                raise Impossible("sizes", f"[{height}, {width}] is over {MAX_ASPECT}:1", "Choose a less extreme size")
        return self


class Parity(Strict):
    """How the artifact is compared with PyTorch."""

    matrix: Literal["quick", "standard", "full"] = "standard"
    """Which cases `verify` runs unless told otherwise."""
    tolerances: str = Field(default="", min_length=1)
    """Profile in parity_tests/harness/judging/tolerances.yaml; that of the least precise part unless said."""
    held_out: bool = False
    """Also sit the trained tiny model's exam: only checkpoints that were trained on drawn pictures can."""


class Packaging(Strict):
    """Which runtimes the directory is laid out for."""

    runtimes: tuple[RuntimeName, ...] = Field(default=(), min_length=1)
    """Runtimes that must be able to load the directory; every one that can load these graphs unless said."""
    tied_head: Literal["copy", "link"] = "copy"
    """An output head that is the token table, where transformers.js must find it under the decoder's name: stored
    again, or by a hard link, which takes no room, and which onnxruntime reads and the `onnx` package refuses."""


class Precision(Strict):
    """Another precision of the same graphs; says all of it, and inherits nothing of the recipe's own."""

    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Floating type of weights and activations, as the recipe's."""
    quantization: Quantization = Quantization()
    """How the weights of each graph are stored, as the recipe's."""
    tolerances: str = Field(default="", min_length=1)
    """Profile in parity_tests/harness/judging/tolerances.yaml; that of the least precise part unless said."""


class Recipe(Strict):
    """One build, described completely: equal recipes and checkpoints give equal bytes."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """Name of the artifact, its default directory under artifacts/. The file's name unless said; never inherited."""
    description: str = ""
    """One line for `recipes list`. Never inherited."""
    checkpoint: Checkpoint
    """Where the weights come from. A recipe that changes `source` starts afresh: it inherits no revision."""
    target: Literal["ort", "portable"] = "ort"
    """ort: onnxruntime's fused operators. portable: standard ONNX operators only."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Floating type of weights and activations. bfloat16 is that of the weights only: computing is in float32."""
    vision: Vision = Vision()
    """Which picture sizes the vision encoder takes."""
    graphs: tuple[GraphName, ...] = Field(default=GRAPH_NAMES, min_length=1)
    """Graphs to export; all of them unless said."""
    quantization: Quantization = Quantization()
    """How the weights of each graph are stored."""
    precisions: dict[PrecisionName, Precision] = Field(default={})
    """Precisions that lie beside this one in the same directory, under the suffixes transformers.js knows."""
    calibration: Calibration | None = None
    """Prompts for weights that are calibrated."""
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
        return self._directory / Path(self.checkpoint.source).expanduser() if self.checkpoint.is_local else None

    @property
    def calibration_dir(self) -> Path | None:
        """The folder of calibration prompts, if one is named."""
        return self._directory / Path(self.calibration.source).expanduser() if self.calibration is not None else None

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Files and directories of this machine that a build reads: recipes, checkpoint, calibration prompts."""
        named = (self.checkpoint_dir, self.calibration_dir)
        return (*self._files, *(path for path in named if path is not None))

    @property
    def compute_dtype(self) -> Literal["float32", "float16"]:
        """Floating type of activations, inputs and outputs: onnxruntime's CPU provider has no bfloat16 kernels."""
        return "float16" if self.dtype == "float16" else "float32"

    def quantize(self, graph: str) -> Quantize:
        """How the weights of one graph are stored; embed_tokens and embeddings share a table, encoders a tower."""
        stem = "vision_encoder" if graph.startswith("vision_encoder") else graph
        plan: Quantize = getattr(self.quantization, "embeddings" if stem == "embed_tokens" else stem)
        return plan

    @property
    def every_precision(self) -> tuple[str, ...]:
        """Names of all precisions, the recipe's own first."""
        return (DEFAULT, *self.precisions)

    def at(self, precision: str) -> Recipe:
        """The recipe of one of its precisions alone."""
        if precision == DEFAULT:
            return self.model_copy(update={"precisions": {}})
        one = next(value for name, value in self.precisions.items() if name == precision)
        parity = self.parity.model_copy(update={"tolerances": one.tolerances})
        own = {"dtype": one.dtype, "quantization": one.quantization, "parity": parity}
        return self.model_copy(update={**own, "precisions": {}})

    def written_for(self, precision: str, graph: str) -> str:
        """The precision whose file a graph of `precision` is: the first that stores it the same way."""
        wanted = self.at(precision).storage(graph)
        return next(name for name in self.every_precision if self.at(name).storage(graph) == wanted)

    def storage(self, graph: str) -> tuple[str, Quantize]:
        """What the bytes of a graph depend on besides checkpoint and target."""
        return self.dtype, self.quantize(graph)

    def to_json_dict(self) -> dict[str, Any]:
        """Plain JSON values with every default filled in. An absolute source keeps its last name only: the same recipe
        and checkpoint must give the same bytes wherever they lie."""
        values: dict[str, Any] = self.model_dump(mode="json")
        for block in (values["checkpoint"], values["calibration"] or {}):
            if block.get("source", "").startswith(("/", "~")):
                block["source"] = "./" + Path(block["source"]).name
        return values

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if len(set(self.graphs)) != len(self.graphs):
            raise Impossible("graphs", "a graph appears twice", "Remove one")
        for name in self.every_precision:
            self.at(name)._precision_is_possible(f"precisions.{name}." if name else "")
        missing = [name for name in GRAPH_NAMES if name not in self.graphs]
        for runtime in self.packaging.runtimes:
            if runtime not in loadable_by(self.graphs, self.vision.grid):
                needed = [name for name in RUNTIMES[runtime].graphs if name not in self.graphs]
                what = f"{needed[0]}, which is not exported" if needed else "a vision encoder for any picture size"
                raise Impossible(
                    "packaging.runtimes", f"{runtime} needs {what}", f"Leave {runtime} out, or packaging.runtimes"
                )
        if self.parity.held_out and missing:
            raise Impossible(
                "parity.held_out", f"the exam needs every graph, {missing[0]} is not exported", "Set held_out: false"
            )
        return self

    def _precision_is_possible(self, prefix: str) -> None:
        """Check what belongs to one precision; `prefix` is where its keys stand in the recipe."""
        own, said = profile_of(self.model_dump()), self.parity.tolerances
        if said in PROFILES and PROFILES.index(said) < PROFILES.index(own):
            raise Impossible(
                f"{prefix}tolerances" if prefix else "parity.tolerances",
                f"{own} cannot meet the {said} profile",
                f"Write tolerances: {own}, or leave it out",
            )
        plans = self.quantization
        if plans.vision_encoder.method == "int4" and not plans.vision_encoder.accept_error:
            raise Impossible(
                f"{prefix}quantization.vision_encoder.accept_error",
                "4-bit weights change the features of the vision tower by a tenth and more",
                "Use method: int8, or accept it with accept_error: true",
            )
        if plans.embeddings.method == "int8_dynamic":
            raise Impossible(
                f"{prefix}quantization.embeddings.method",
                "int8_dynamic quantizes products, and a table is only looked up",
                "Use method: int8",
            )
        self._calibration_is_possible(prefix)
        if self.target != "portable":
            return
        if plans.embeddings.method != "none":
            raise Impossible(
                f"{prefix}quantization.embeddings.method",
                "no standard operator looks up quantized rows",
                "Use method: none",
            )
        for graph in ("vision_encoder", "decoder_model_merged"):
            plan = getattr(plans, graph)
            if plan.method in ("int8", "int4") and not plan.symmetric:
                raise Impossible(
                    f"{prefix}quantization.{graph}.symmetric",
                    "the portable target has symmetric blocks only",
                    "Remove it",
                )

    def _calibration_is_possible(self, prefix: str) -> None:
        for graph in ("vision_encoder", "embeddings"):
            if getattr(getattr(self.quantization, graph), "algorithm", "") == "gptq":
                raise Impossible(
                    f"{prefix}quantization.{graph}.algorithm",
                    "only the decoder is calibrated",
                    "Write algorithm: search",
                )
        if getattr(self.quantization.decoder_model_merged, "algorithm", "") == "gptq" and self.calibration is None:
            raise Impossible(
                "calibration", "algorithm: gptq needs prompts to look at", "Write calibration: {source: ./calibration}"
            )
