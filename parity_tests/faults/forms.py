"""Artifacts whose activations are rounded, made from those of shipped recipes without another build.

A form changes the graphs and the recipe of an artifact as a build with other settings would. Knows operators and
recipes; not whether anybody notices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

from qwen3vl_export.artifact import Artifact
from qwen3vl_export.contract import DECODER

from ..harness.sides.artifact.float_activations import MICROSOFT
from .graphs import PieceNotFound

DATA, SCALES = "quantized", "scales"  # in the names of a weight's parts
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Form:
    """Another way to store the decoder.

    Attributes:
        name: in the names of faults.
        settings: of the decoder's quantization, in place of the recipe's.
        rewrite: the decoder's graph, without its external data.
    """

    name: str
    settings: Callable[[Settings], Settings]
    rewrite: Callable[[Artifact, ModelProto], None]

    def apply(self, artifact: Artifact) -> tuple[Artifact, Path]:
        """The artifact with its decoder changed in place, and the file that changed."""
        path = artifact.graph_path(DECODER)
        model = onnx.load(path, load_external_data=False)
        self.rewrite(artifact, model)
        onnx.save(model, path)
        manifest = replace(artifact.manifest, recipe=self.recipe(artifact.manifest.recipe))
        return replace(artifact, manifest=manifest), path

    def recipe(self, recipe: Settings) -> dict[str, Any]:
        """The recipe of this form."""
        quantization = recipe["quantization"]
        decoder = self.settings(quantization[DECODER])
        parity = {**recipe["parity"], "tolerances": "int8" if decoder["method"] == "int8_dynamic" else "int4"}
        return {**recipe, "quantization": {**quantization, DECODER: decoder}, "parity": parity}


def set_level_4(artifact: Artifact, model: ModelProto) -> None:
    """`accuracy_level: 4` of every product."""
    products = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    for node in products:
        kept = [attribute for attribute in node.attribute if attribute.name != "accuracy_level"]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("accuracy_level", 4)])
    if not products:
        raise PieceNotFound("no MatMulNBits")


def quantize_dynamically(artifact: Artifact, model: ModelProto) -> None:
    """Every product with a weight of the decoder's float32 graph as a `DynamicQuantizeMatMul`."""
    folder = str(artifact.graph_path(DECODER).parent)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in stored]
    for node in products:
        name = node.input[1]
        columns = numpy_helper.to_array(stored[name], folder)
        has_rows = node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)
        for part, array in pack_columns(columns.T if has_rows else columns).items():
            model.graph.initializer.append(numpy_helper.from_array(array, f"{name}.{part}"))
        inputs = [node.input[0], f"{name}.{DATA}", f"{name}.{SCALES}", "", *node.input[2:]]
        inputs = inputs if len(node.input) > 2 else inputs[:3]
        node.CopyFrom(helper.make_node("DynamicQuantizeMatMul", inputs, node.output, node.name, domain=MICROSOFT))
    if not products:
        raise PieceNotFound("no product with a weight")


def pack_columns(columns: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Symmetric int8 [K, N] with a scale for each column."""
    scales = (np.abs(columns).max(0) / 127).astype(np.float32)
    data = np.round(columns / np.where(scales == 0, 1, scales)).astype(np.int8)
    return {DATA: data, SCALES: scales}


LEVEL_4 = Form("level-4", lambda settings: {**settings, "accuracy_level": 4}, set_level_4)
INT8_DYNAMIC = Form("int8-dynamic", lambda settings: {"method": "int8_dynamic", "keep": []}, quantize_dynamically)
