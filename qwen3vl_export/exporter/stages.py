"""What each build stage did to a graph: nodes, ops and bytes, logged at once and kept for the manifest.

Knows nothing about what a stage does. No durations: the manifests of equal inputs must be equal.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import onnx_ir as ir

from .. import __version__

TOOLS = ("torch", "transformers", "onnx", "onnxruntime", "onnxscript", "onnx-ir", "onnxsim", "safetensors", "numpy")


@dataclass
class Stages:
    """The stages one graph went through.

    Attributes:
        name: the graph's name.
        log: takes one line; silent by default.
        keep: stores a copy of a model under the name of its stage (or `stage/step`); None keeps none.
    """

    name: str
    log: Callable[[str], None] = lambda line: None
    keep: Callable[[str, ir.Model], None] | None = None
    records: list[dict[str, Any]] = field(default_factory=list)

    def keep_step(self, stage: str, name: str, model: ir.Model) -> None:
        """Keep `model` as it was after one step of `stage`, if stages are kept."""
        if self.keep is not None:
            self.keep(f"{stage}/{name}", model)

    def record(self, stage: str, model: ir.Model) -> ir.Model:
        """Record and log `model` as the result of `stage`; returns it."""
        ops = Counter(f"{node.domain}.{node.op_type}".lstrip(".") for node in model.graph.all_nodes())
        size = len(ir.to_proto(model).SerializeToString())
        weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
        record = {"stage": stage, "nodes": ops.total(), "ops": dict(sorted(ops.items())), "bytes": size}
        line = f"{self.name:24} {stage:11}{ops.total():5} nodes of {len(ops):2} ops, {size:9,} bytes"
        if self.records:
            line += f" ({ops.total() - self.records[-1]['nodes']:+} nodes)"
        if stage == "written":
            record["weight_bytes"] = weights
            line += f", {weights:,} bytes of weights"
        elif self.keep is not None:
            self.keep(stage, model)
        self.records.append(record)
        self.log(line)
        return model


def tool_versions() -> dict[str, str]:
    """Versions of everything that shapes the bytes of an artifact."""
    versions = {name: version(name) for name in TOOLS}
    return {"qwen3vl-export": __version__, "python": platform.python_version(), **versions}
