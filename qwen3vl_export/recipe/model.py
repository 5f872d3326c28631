"""The model of a recipe: one build, described completely.

The descriptions of its fields, and of those of its blocks (`blocks.py`, `quantize.py`), become the JSON Schema that
editors read and the table in docs/recipes.md. Rules that span several fields raise `FieldConflict`, which names the
field to change. Knows nothing about YAML, files on disk or the checkpoint.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from ..contract import DECODER, TEXT
from ..hub import SCHEME
from ..packaging import RUNTIMES, loadable_runtimes
from .blocks import (
    GRAPH_NAMES,
    Calibration,
    Checkpoint,
    Cost,
    ExpertsForm,
    GraphName,
    HeadName,
    Packaging,
    Parity,
    Precision,
    PrecisionName,
    Vision,
    is_directory,
)
from .quantize import PROFILES, CacheSettings, FloatCache, MethodSettings, Quantization, profile_of
from .strict import FieldConflict, StrictModel

DEFAULT = ""  # the precision of the recipe itself, whose files have no suffix
OLDEST_WITH_INT8_CACHE = "1.27"  # of onnxruntime; 1.26 has no kernel that reads a quantized cache on a CPU


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
        if len(set(self.graphs)) != len(self.graphs):
            raise FieldConflict("graphs", "a graph appears twice", "Remove one")
        for name in self.every_precision:
            self.at(name)._check_precision(f"precisions.{name}." if name else "")
        missing = [name for name in GRAPH_NAMES if name not in self.graphs]
        for runtime in self.packaging.runtimes:
            if self.head not in (None, *RUNTIMES[runtime].heads):
                raise FieldConflict(
                    "packaging.runtimes",
                    f"{runtime} only answers, and the head is {self.head}",
                    f"Leave {runtime} out, or packaging.runtimes",
                )
            if runtime not in loadable_runtimes(self.graphs, self.vision.grid, self.head or TEXT):
                needed = [name for name in RUNTIMES[runtime].graphs if name not in self.graphs]
                requirement = (
                    f"{needed[0]}, which is not exported" if needed else "a vision encoder for any picture size"
                )
                raise FieldConflict(
                    "packaging.runtimes",
                    f"{runtime} needs {requirement}",
                    f"Leave {runtime} out, or packaging.runtimes",
                )
        if self.parity.held_out and self.head not in (None, TEXT):
            raise FieldConflict(
                "parity.held_out", f"the exam asks questions, and the head is {self.head}", "Set held_out: false"
            )
        if self.parity.cost not in (None, Cost()) and self.head not in (None, TEXT):
            raise FieldConflict(
                "parity.cost",
                f"its limits are on logits of the next token, and the head is {self.head}",
                "Write cost: {}, which has none, or leave it out",
            )
        if self.parity.held_out and missing:
            raise FieldConflict(
                "parity.held_out", f"the exam needs every graph, {missing[0]} is not exported", "Set held_out: false"
            )
        return self

    def _check_precision(self, prefix: str) -> None:
        """Check the fields of one precision; `prefix` is the path of its keys in the recipe."""
        needed, chosen = profile_of(self.model_dump()), self.parity.tolerances
        if chosen in PROFILES and PROFILES.index(chosen) < PROFILES.index(needed):
            raise FieldConflict(
                f"{prefix}tolerances" if prefix else "parity.tolerances",
                f"{needed} cannot meet the {chosen} profile",
                f"Write tolerances: {needed}, or leave it out",
            )
        quantization = self.quantization
        if quantization.vision_encoder.method == "int4" and not quantization.vision_encoder.accept_error:
            raise FieldConflict(
                f"{prefix}quantization.vision_encoder.accept_error",
                "4-bit weights change the features of the vision tower by a tenth and more",
                "Use method: int8, or accept it with accept_error: true",
            )
        if quantization.embeddings.method == "int8_dynamic":
            raise FieldConflict(
                f"{prefix}quantization.embeddings.method",
                "int8_dynamic quantizes products, and a table is only looked up",
                "Use method: int8",
            )
        for graph in ("vision_encoder", "decoder_model_merged"):
            if getattr(quantization, graph).method == "int8_dynamic" and self.dtype == "float16":
                raise FieldConflict(
                    f"{prefix}quantization.{graph}.method",
                    "int8_dynamic takes activations in float32",
                    "Write dtype: float32, or method: int8",
                )
        self._check_cache(prefix)
        self._check_calibration(prefix)
        if self.target != "portable":
            return
        if self.experts == "operator":
            raise FieldConflict(
                f"{prefix}experts", "no standard operator computes a mixture of experts", "Write experts: auto"
            )
        for graph in ("vision_encoder", "embeddings", "decoder_model_merged"):
            settings = getattr(quantization, graph)
            if settings.method == "source":
                raise FieldConflict(
                    f"{prefix}quantization.{graph}.method",
                    "integers of a checkpoint go into MatMulNBits, an operator of the ort target",
                    "Write target: ort, or method: int4, which restores and rounds them",
                )
            if graph != "embeddings" and settings.method in ("int8", "int4") and not settings.symmetric:
                raise FieldConflict(
                    f"{prefix}quantization.{graph}.symmetric",
                    "the portable target has symmetric blocks only",
                    "Remove it",
                )

    def _check_calibration(self, prefix: str) -> None:
        for graph in ("embeddings", "decoder_model_merged"):
            if getattr(getattr(self.quantization, graph), "smoothing", "none") != "none":
                raise FieldConflict(
                    f"{prefix}quantization.{graph}.smoothing", "only the vision encoder is smoothed", "Remove it"
                )
        if getattr(self.quantization.vision_encoder, "smoothing", "none") == "calibration" and self.calibration is None:
            raise FieldConflict(
                "calibration",
                "smoothing: calibration needs prompts with pictures",
                "Write calibration: {source: ./calibration}, or smoothing: weights, which needs none",
            )
        for graph in ("vision_encoder", "embeddings"):
            if getattr(getattr(self.quantization, graph), "algorithm", "") == "gptq":
                raise FieldConflict(
                    f"{prefix}quantization.{graph}.algorithm",
                    "only the decoder is calibrated",
                    "Write algorithm: search",
                )
        if self.is_calibrated and self.calibration is None:
            cache = self.quantization.cache.method
            raise FieldConflict(
                "calibration",
                f"{'algorithm: gptq' if cache == 'none' else f'cache: {cache}'} needs prompts",
                "Write calibration: {source: ./calibration}",
            )

    def _check_cache(self, prefix: str) -> None:
        """Check that the recipe's graphs can have the cache that it asks for."""
        if self.quantization.cache.method == "none":
            return
        key = f"{prefix}quantization.cache.method"
        if self.target == "portable":
            raise FieldConflict(
                key, "no standard operator reads a quantized cache", "Write target: ort, or method: none"
            )
        if self.packaging.provider != "cpu":
            provider = self.packaging.provider
            raise FieldConflict(
                key, f"only a CPU is known to read it, the provider is {provider}", "Write method: none"
            )
        if self.head not in (None, TEXT):
            raise FieldConflict(key, f"the head is {self.head}, which reads every prompt at once", "Write method: none")
        written, oldest = (
            tuple(map(int, version.split("."))) for version in (self.min_onnxruntime, OLDEST_WITH_INT8_CACHE)
        )
        if written < oldest:
            raise FieldConflict(
                "min_onnxruntime",
                f"a cache in 8 bits needs onnxruntime {OLDEST_WITH_INT8_CACHE}, this says {self.min_onnxruntime}",
                f'Write min_onnxruntime: "{OLDEST_WITH_INT8_CACHE}"',
            )


def _without_machine(source: str) -> str:
    """A source without an absolute path."""
    return "./" + Path(source).name if source.startswith(("/", "~")) else source
