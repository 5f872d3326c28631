"""Settings that no published checkpoint has and transformers computes: towers and decoders beside transformers' own.

Each of a few random models differs from the published ones in as many settings as it can: tracing takes seconds.
"""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.activations import ACT2FN
from transformers.cache_utils import DynamicCache

from qwen3vl_export import contract
from qwen3vl_export.contract import past_name, present_name
from qwen3vl_export.exporter.checkpoint import Checkpoint, open_checkpoint
from qwen3vl_export.exporter.checkpoint.files import SINGLE
from qwen3vl_export.exporter.checkpoint.supported import ACTIVATIONS
from qwen3vl_export.exporter.optimize import optimize
from qwen3vl_export.exporter.pipeline import export_graph
from qwen3vl_export.exporter.simplify import simplify
from qwen3vl_export.exporter.stages import Stages
from qwen3vl_export.exporter.submodules import Submodule, build_submodule
from qwen3vl_export.exporter.trace import trace
from qwen3vl_export.exporter.weights import WeightFile

from ...fixtures.official import write_checkpoint

TOWERS: dict[str, dict[str, Any]] = {
    "merge-3-patch-14": {
        "spatial_merge_size": 3,
        "patch_size": 14,
        "temporal_patch_size": 1,
        "deepstack_visual_indexes": [2, 0],
        "num_position_embeddings": 119,  # rounds up to 11 x 11, of which one row is missing
        "hidden_act": "silu",
        "rope_parameters": {"rope_type": "axial", "rope_theta": 300.0},
    },
    "merge-1-without-deepstack": {
        "spatial_merge_size": 1,
        "deepstack_visual_indexes": [],
        "num_position_embeddings": 81,
        "hidden_act": "quick_gelu",
        "depth": 1,
        "num_heads": 1,
    },
}
DTYPES = (torch.bfloat16, torch.float32, torch.float16, torch.float32)  # of stored tensors, by turns
YARN = {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 32, "rope_theta": 1000.0}
DECODERS: dict[str, dict[str, Any]] = {
    "biases-and-yarn": {
        "attention_bias": True,
        "head_dim": 24,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "hidden_act": "gelu",
        "rms_norm_eps": 0.01,
        "rope_parameters": {**YARN, "mrope_section": [4, 4, 4]},
    },
    "more-maps-than-layers": {"num_hidden_layers": 1, "rope_parameters": {**YARN, "mrope_section": [8, 0, 0]}},
}


def model_config(text: dict[str, Any], vision: dict[str, Any]) -> Qwen3VLConfig:
    text = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 64,
        "max_position_embeddings": 96,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [4, 2, 2]},
        **text,
    }
    vision = {
        "depth": 3,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 4,
        "out_hidden_size": 48,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 2],
        **vision,
    }
    ids = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
    return Qwen3VLConfig(text_config=text, vision_config=vision, **ids)


def written(root: Path, text: dict[str, Any], vision: dict[str, Any]) -> tuple[Checkpoint, Any]:
    """A random checkpoint whose tensors are stored in dtypes by turns, and transformers' model of it in float32."""
    path = write_checkpoint(root / "checkpoint", model_config(text, vision), dtype=torch.float32)
    tensors = zip(load_file(path / SINGLE).items(), cycle(DTYPES), strict=False)
    save_file({name: tensor.to(dtype) for (name, tensor), dtype in tensors}, path / SINGLE, metadata={"format": "pt"})
    model = Qwen3VLForConditionalGeneration.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    return open_checkpoint(str(path)), model.eval()


def session(root: Path, checkpoint: Checkpoint, name: str, target: str) -> Any:
    submodule = build_submodule(checkpoint, name, target, torch.float32)
    with WeightFile.create(root, name) as data:
        export_graph(submodule, checkpoint, target, torch.float32, data, Stages(name))
    return ort.InferenceSession(str(root / f"{name}.onnx"))


@pytest.mark.parametrize(("name", "target"), list(zip(TOWERS, ("ort", "portable"), strict=True)))
def test_a_tower_of_other_settings_equals_transformers(name: str, target: str, tmp_path: Path) -> None:
    checkpoint, model = written(tmp_path, {}, TOWERS[name])
    encoder = session(tmp_path, checkpoint, contract.VISION_ENCODER, target)
    merge = checkpoint.facts.spatial_merge_size
    grid = torch.tensor([[1, 4 * merge, 2 * merge], [3, merge, 5 * merge]])
    rows = int(grid.prod(1).sum())
    pixels = torch.randn(rows, checkpoint.facts.patch_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = model.model.visual(pixels, grid_thw=grid)
    expected = torch.cat([out.pooler_output, *out.deepstack_features], dim=-1).numpy()
    features = encoder.run(None, {contract.PIXEL_VALUES: pixels.numpy(), contract.IMAGE_GRID_THW: grid.numpy()})[0]
    assert features.shape == expected.shape == (rows // merge**2, checkpoint.facts.wide_size)
    assert np.abs(features - expected).max() <= 5e-5
    assert expected.std() > 0.1


def test_embeddings_without_deepstack_equal_transformers(tmp_path: Path) -> None:
    checkpoint, model = written(tmp_path, {}, TOWERS["merge-1-without-deepstack"])
    ids = torch.tensor([[3, 60, 60, 5]])
    with torch.no_grad():
        expected = model.get_input_embeddings()(ids).numpy()
    alone = session(tmp_path, checkpoint, contract.EMBED_TOKENS, "ort").run(None, {contract.INPUT_IDS: ids.numpy()})[0]
    assert np.array_equal(alone, expected)
    features = np.full((2, checkpoint.facts.wide_size), 7, np.float32)
    feeds = {contract.INPUT_IDS: ids.numpy(), contract.IMAGE_FEATURES: features}
    scattered = session(tmp_path, checkpoint, contract.EMBEDDINGS, "ort").run(None, feeds)[0]
    expected[0, 1:3] = 7
    assert np.array_equal(scattered, expected)


@pytest.mark.parametrize(("name", "target"), list(zip(DECODERS, ("ort", "portable"), strict=True)))
def test_a_decoder_of_other_settings_equals_transformers(name: str, target: str, tmp_path: Path) -> None:
    """A prompt and one more token, three axes unlike each other."""
    checkpoint, model = written(tmp_path, DECODERS[name], {})
    decoder, facts = session(tmp_path, checkpoint, contract.DECODER, target), checkpoint.facts
    generator = torch.Generator().manual_seed(1)
    cache = DynamicCache(config=model.config.text_config)
    past = {
        past_name(layer, part): np.zeros((1, facts.num_key_value_heads, 0, facts.head_dim), np.float32)
        for layer in range(facts.num_hidden_layers)
        for part in ("key", "value")
    }
    total = 0
    for rows in (9, 1):
        total += rows
        wide = torch.randn(1, rows, facts.wide_size, generator=generator)
        positions = torch.randint(0, 90, (3, 1, rows), generator=generator)
        mask = torch.ones(1, total, dtype=torch.int64)
        hidden, *maps = torch.split(wide, facts.hidden_size, dim=-1)
        with torch.no_grad():
            output = model.model.language_model(
                None,
                mask,
                positions,
                cache,
                inputs_embeds=hidden,
                visual_pos_masks=torch.ones(1, rows, dtype=torch.bool),
                deepstack_visual_embeds=[values[0] for values in maps],
            )
            expected = model.lm_head(output.last_hidden_state).numpy()
        feeds = {contract.INPUTS_EMBEDS: wide, contract.ATTENTION_MASK: mask, contract.POSITION_IDS: positions}
        names = [value.name for value in decoder.get_outputs()]
        results = decoder.run(None, {name: value.numpy() for name, value in feeds.items()} | past)
        outputs = dict(zip(names, results, strict=True))
        assert np.abs(outputs[contract.LOGITS] - expected).max() <= 5e-5
        for layer, stored in enumerate(cache.layers):
            assert np.abs(outputs[present_name(layer, "key")] - stored.keys.numpy()).max() <= 5e-5
        past = {
            name.replace("present", "past_key_values"): value for name, value in outputs.items() if "present" in name
        }
    assert expected.std() > 0.1


class EveryActivation(nn.Module):
    """All exported activations, each of its own columns, traced together because tracing takes seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.activations = nn.ModuleList(ACT2FN[name] for name in ACTIVATIONS)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        columns = torch.chunk(x, len(self.activations), dim=-1)
        return tuple(activation(part) for activation, part in zip(self.activations, columns, strict=True))


def test_every_activation_equals_transformers() -> None:
    width = 16
    shape = ("batch_size", "sequence_length")
    outputs = tuple(contract.Tensor(f"{name}_of_x", "float", (*shape, width)) for name in ACTIVATIONS)
    graph = contract.Graph("activations", (contract.Tensor("x", "float", (*shape, width * len(ACTIVATIONS))),), outputs)
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    submodule = Submodule(graph, EveryActivation().eval(), mode)
    model = optimize(simplify(trace(submodule, torch.float32)), "ort")
    runner: Any = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    x = torch.linspace(-12, 12, 3 * 5 * width).reshape(3, 5, width)
    results = runner.run(None, {"x": x.repeat(1, 1, len(ACTIVATIONS)).numpy()})
    for name, result in zip(ACTIVATIONS, results, strict=True):
        assert np.abs(result - ACT2FN[name](x).numpy()).max() <= 2e-5, name


def test_every_activation_without_parameters_is_exported() -> None:
    assert set(ACTIVATIONS) == {name for name in ACT2FN if not list(ACT2FN[name].parameters())}
