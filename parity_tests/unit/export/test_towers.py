"""Every published tower and decoder: traced at full size on fake weights, compared with PyTorch at full width."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from qwen3vl_export import contract
from qwen3vl_export.exporter.checkpoint import Checkpoint, open_checkpoint
from qwen3vl_export.exporter.optimize import optimize
from qwen3vl_export.exporter.pipeline import export_graph
from qwen3vl_export.exporter.simplify import simplify
from qwen3vl_export.exporter.stages import Stages
from qwen3vl_export.exporter.weights import WeightFile
from qwen3vl_export.exporter.weights.inputs import weight_inputs

from ...fixtures.official import config, write_checkpoint
from ...fixtures.traces import build_submodule, trace

GRIDS = [[1, 16, 16], [2, 6, 10], [1, 2, 30]]


@pytest.mark.parametrize("size", ["2b", "8b"])
def test_a_full_tower_is_traced_without_a_weight_and_without_a_fixed_dim(size: str) -> None:
    """`trace` raises if a dim was specialised; what is left to see is that no weight was lost, copied or made real."""
    sizes = config(size, layers=1)
    checkpoint = Checkpoint(Path("nowhere"), "random", "local", sizes)
    submodule = build_submodule(checkpoint, contract.VISION_ENCODER, "ort", torch.float32)
    model = optimize(simplify(trace(submodule, torch.float32)), "ort")
    counts = Counter(node.op_type for node in model.graph.all_nodes())
    assert counts["If"] == counts["Loop"] == sizes.vision_config.depth  # a branch for frames that are alike, or a loop
    assert counts["MultiHeadAttention"] == 2 * sizes.vision_config.depth
    with torch.device("meta"):
        parameters = sum(p.numel() for p in Qwen3VLVisionModel(sizes.vision_config).parameters())
    assert sum(math.prod(map(int, value.shape or ())) for value in weight_inputs(model)) == parameters
    constants = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    assert constants < 100_000


@pytest.mark.parametrize("size", ["2b", "8b"])
@pytest.mark.parametrize("target", ["ort", "portable"])
def test_a_tower_of_full_width_equals_pytorch(size: str, target: str, tmp_path: Path) -> None:
    """Head sizes 64 and 72, intermediate sizes 4096 and 4304, real mergers; four layers, float32."""
    sizes = config(size, layers=1, depth=4, vocab_size=64)
    checkpoint = open_checkpoint(str(write_checkpoint(tmp_path / "checkpoint", sizes)))
    submodule = build_submodule(checkpoint, contract.VISION_ENCODER, target, torch.float32)
    with WeightFile.create(tmp_path, contract.VISION_ENCODER) as data:
        export_graph(submodule, checkpoint, target, torch.float32, data, Stages(contract.VISION_ENCODER))

    reference = Qwen3VLVisionModel._from_config(sizes.vision_config, attn_implementation="eager").eval()
    prefix = "model.visual."
    weights = {n.removeprefix(prefix): checkpoint.read(n).float() for n in checkpoint.tensors if n.startswith(prefix)}
    reference.load_state_dict(weights)
    grid = torch.tensor(GRIDS)
    pixels = torch.randn(int(grid.prod(1).sum()), 1536, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = reference(pixels, grid_thw=grid)
    expected = torch.cat([out.pooler_output, *out.deepstack_features], dim=-1).numpy()

    session: Any = ort.InferenceSession(str(tmp_path / "vision_encoder.onnx"))
    features = session.run(None, {"pixel_values": pixels.numpy(), "image_grid_thw": grid.numpy()})[0]
    assert features.shape == expected.shape
    cosine = (features * expected).sum(1) / np.linalg.norm(features, axis=1) / np.linalg.norm(expected, axis=1)
    assert np.abs(features - expected).max() <= 5e-5
    assert cosine.min() >= 0.999999
