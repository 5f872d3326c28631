"""The sides of `bench_vision.py`: how each one is exported once and loaded in a fresh process.

A side is an export, which writes a folder, and a load, which returns a call: pixels and grid to features. Adding a
side is a line in `SIDES`. A side that cannot take a case raises `Refused`; the table then says so.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Call = Callable[[Any, Any], Any]
Grid = list[list[int]]


class Refused(Exception):
    """This side cannot take that case."""


@dataclass(frozen=True)
class Side:
    """`export` writes into its folder what `load` reads; `load` gets that folder, the threads and the case's grid."""

    export: Callable[[Path, Path], None]
    load: Callable[[Path, Path, int, Grid], Call]


def session_of(file: Path, threads: int) -> Any:
    """A session with the options of the shipped runtime."""
    from qwen3vl_export.contract import VISION_ENCODER
    from qwen3vl_export.runtime.session import load_session, session_options

    return load_session(file, session_options(VISION_ENCODER, threads))


def export_ours(
    target: str = "ort",
    stored: str | None = None,
    dtype: str = "float32",
    grid: tuple[int, int] | None = None,
    **plan: Any,
) -> Callable[[Path, Path], None]:
    """An export through the pipeline; `plan` is the recipe's `quantization.vision_encoder`."""

    def export(checkpoint: Path, folder: Path) -> None:
        import onnx_ir as ir
        import torch
        from pydantic import TypeAdapter

        from qwen3vl_export.contract import VISION_ENCODER
        from qwen3vl_export.exporter.checkpoint import open_checkpoint
        from qwen3vl_export.exporter.pipeline import export_graph
        from qwen3vl_export.exporter.stages import Stages
        from qwen3vl_export.exporter.submodules import build_submodule
        from qwen3vl_export.exporter.weights import WeightFile
        from qwen3vl_export.recipe.quantize import MethodSettings

        opened, of = open_checkpoint(str(checkpoint)), getattr(torch, dtype)
        how = TypeAdapter(MethodSettings).validate_python(plan or {"method": "none"})
        submodule = build_submodule(opened, VISION_ENCODER, target, of, grid)
        with WeightFile.create(folder, VISION_ENCODER) as data:
            storage = ir.DataType[stored] if stored else None
            export_graph(submodule, opened, target, of, data, Stages(VISION_ENCODER), how, storage)

    return export


def load_ours(checkpoint: Path, folder: Path, threads: int, grid: Grid) -> Call:
    session = session_of(folder / "vision_encoder.onnx", threads)
    return lambda pixels, rows: session.run(None, {"pixel_values": pixels, "image_grid_thw": rows})


def export_nothing(checkpoint: Path, folder: Path) -> None:
    """The side reads the checkpoint itself."""


def load_fixed(checkpoint: Path, folder: Path, threads: int, grid: Grid) -> Call:
    """The encoder bound to the case's grid, exported when first asked for: only a case of one picture has one."""
    if len(grid) > 1 or grid[0][0] > 1:
        raise Refused("one picture only")
    size = (grid[0][1], grid[0][2])
    bound = folder / "{}x{}".format(*size)
    if not bound.is_dir():
        bound.mkdir()
        code = f"from vision_sides import *; export_ours(grid={size})(Path({str(checkpoint)!r}), Path({str(bound)!r}))"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
    call = load_ours(checkpoint, bound, threads, grid)
    return lambda pixels, rows: call(pixels, rows) if rows.tolist() == grid else None  # nothing smaller to warm up with


def torch_tower(checkpoint: Path, threads: int) -> Any:
    """transformers' tower with scaled_dot_product_attention, float32."""
    import torch
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

    from qwen3vl_export.exporter.checkpoint import open_checkpoint

    torch.set_num_threads(threads)
    opened = open_checkpoint(str(checkpoint))
    model = Qwen3VLVisionModel._from_config(opened.config.vision_config, attn_implementation="sdpa").eval()
    prefix = "model.visual."
    names = [name for name in opened.tensors if name.startswith(prefix)]
    model.load_state_dict({name.removeprefix(prefix): opened.read(name).float() for name in names})
    return model


def load_torch(checkpoint: Path, folder: Path, threads: int, grid: Grid) -> Call:
    import torch

    model = torch_tower(checkpoint, threads)

    def call(pixels: Any, rows: Any) -> Any:
        with torch.inference_mode():
            return model(torch.from_numpy(pixels), grid_thw=torch.from_numpy(rows)).pooler_output

    return call


def export_transformers(checkpoint: Path, folder: Path) -> None:
    """transformers' own experimental exporter, all dims dynamic."""
    import torch
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    model = torch_tower(checkpoint, 2)
    example = {"hidden_states": torch.randn(256, 1536), "grid_thw": torch.tensor([[1, 16, 16]])}
    OnnxExporter().export(model, example, OnnxConfig(dynamic=True)).save_pretrained(folder)


def load_transformers(checkpoint: Path, folder: Path, threads: int, grid: Grid) -> Call:
    """Its graph leaves the geometry to the host; here transformers computes it before the clock starts."""
    import torch
    from transformers import vision_utils

    from qwen3vl_export.exporter.checkpoint import open_checkpoint

    if len(grid) > 1:
        raise Refused("traced for one picture")
    session = session_of(folder / "model.onnx", threads)
    vision = open_checkpoint(str(checkpoint)).config.vision_config
    side = round(vision.num_position_embeddings**0.5)

    def call(pixels: Any, rows: Any) -> Any:
        thw = torch.from_numpy(rows)
        indices, weights = vision_utils.get_vision_interpolation_indices_and_weights(
            thw, side, align_corners=True, spatial_merge_size=vision.spatial_merge_size
        )
        known = {
            "hidden_states": pixels,
            "grid_thw": rows,
            "cu_seqlens": vision_utils.get_vision_cu_seqlens(thw).numpy(),
            "position_ids": vision_utils.get_vision_position_ids(thw, vision.spatial_merge_size).numpy(),
            "interp_indices": indices.numpy(),
            "interp_weights": weights.numpy(),
        }
        return session.run(None, {value.name: known[value.name] for value in session.get_inputs()})

    return call


def export_mobius(checkpoint: Path, folder: Path) -> None:
    """mobius-onnx for onnxruntime's CPU provider. Its encoder has no DeepStack mergers, so it computes less."""
    import mobius

    mobius.build(str(checkpoint), dtype="f32", execution_provider="cpu").save(str(folder))


def load_mobius(checkpoint: Path, folder: Path, threads: int, grid: Grid) -> Call:
    session = session_of(folder / "vision_encoder" / "model.onnx", threads)
    return lambda pixels, rows: session.run(None, {"pixel_values": pixels, "image_grid_thw": rows})


SIDES: dict[str, Side] = {
    "torch": Side(export_nothing, load_torch),
    "ort": Side(export_ours(), load_ours),
    "portable": Side(export_ours("portable"), load_ours),
    "fixed": Side(export_nothing, load_fixed),
    "bfloat16": Side(export_ours(stored="BFLOAT16"), load_ours),
    "float16": Side(export_ours(dtype="float16"), load_ours),
    "int8": Side(export_ours(method="int8", accuracy_level=4), load_ours),
    "int8-dynamic": Side(export_ours(method="int8_dynamic"), load_ours),
    "int8-per-token": Side(export_ours(method="int8_dynamic", activations="per_token"), load_ours),
    "int4": Side(export_ours(method="int4", accuracy_level=4, accept_error=True), load_ours),
    "transformers": Side(export_transformers, load_transformers),
    "mobius": Side(export_mobius, load_mobius),
}


def gemm_peak(threads: int) -> float:
    """GF/s of wall time that onnxruntime's Gemm reaches on a matrix of the tower's shape, the best of ten."""
    import time

    from onnx import TensorProto, helper, numpy_helper

    rows, inner, outer = 1024, 1024, 4096
    weight = np.random.default_rng(0).standard_normal((outer, inner), np.float32)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, inner])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, outer])
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    graph = helper.make_graph([node], "gemm", [x], [y], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "gemm.onnx"
        file.write_bytes(model.SerializeToString())
        session = session_of(file, threads)
        feeds = {"x": np.random.default_rng(1).standard_normal((rows, inner), np.float32)}
        times = []
        for _ in range(10):
            start = time.perf_counter()
            session.run(None, feeds)
            times.append(time.perf_counter() - start)
    return 2 * rows * inner * outer / min(times) / 1e9
