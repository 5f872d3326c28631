"""Rotary settings of every type: the angles in the graph are those of transformers' own module, as it decodes."""

from __future__ import annotations

import copy
import json
from typing import Any

import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from transformers import Qwen3VLConfig, Qwen3VLMoeConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextRotaryEmbedding

from qwen3vl_export.contract import Graph, Tensor
from qwen3vl_export.exporter.checkpoint.ignored import warn_of_ignored
from qwen3vl_export.exporter.checkpoint.rotary import TEXT, context_length, text_rotary
from qwen3vl_export.exporter.simplify import simplify
from qwen3vl_export.exporter.submodules import Submodule
from qwen3vl_export.exporter.submodules.mrope import MultimodalRotary, mrope_axes
from qwen3vl_export.exporter.trace import trace

from ...fixtures import forms_table
from ...fixtures.moe_checkpoint import mixture_config
from ...fixtures.paths import TINY

CONTEXT, ORIGINAL = 512, 128  # max_position_embeddings, original_max_position_embeddings
HALF = 16  # frequencies of the tiny model's heads
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 3.0, "original_max_position_embeddings": ORIGINAL},
    "llama3": {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    | {"original_max_position_embeddings": ORIGINAL},
    "longrope": {"original_max_position_embeddings": ORIGINAL}
    | {"short_factor": [1 + index / 8 for index in range(HALF)], "long_factor": [2.0 + index for index in range(HALF)]},
    "proportional": {"partial_rotary_factor": 0.5},
}
YARN_SETTINGS: list[dict[str, Any]] = [
    {"attention_factor": 0.7},
    {"beta_fast": 16, "beta_slow": 2},
    {"mscale": 1.0, "mscale_all_dim": 0.5},
    {"truncate": False},
]
LENGTHS = [ORIGINAL - 8, ORIGINAL + 8, CONTEXT - 8, CONTEXT + 8]  # of prompts, on both sides of every limit


def text_config(rope_type: str, published: bool = True, **rope: Any) -> Any:
    """The tiny model's text configuration with other rotary settings, in the published form or transformers 5's."""
    raw = json.loads((TINY / "config.json").read_text("utf-8"))
    text = raw["text_config"]
    settings = {**text.pop("rope_parameters"), **SETTINGS[rope_type], **rope, "rope_type": rope_type}
    if published:
        text |= {"rope_theta": settings.pop("rope_theta"), "rope_scaling": settings}
    else:
        text["rope_parameters"] = settings
    text["max_position_embeddings"] = CONTEXT
    return Qwen3VLConfig.from_dict(raw).text_config


def prompts(length: int) -> torch.Tensor:
    """Positions int64 [3, 2, 7] of two rows, the axes unlike each other, `length` the first that is free."""
    positions = torch.randint(0, length, (3, 2, 7), generator=torch.Generator().manual_seed(length))
    positions[2, 1, 3] = length - 1
    return positions


def decoded(length: int, steps: int = 20) -> list[torch.Tensor]:
    """A prompt's positions, then those of tokens one by one, across any limit that is near."""
    return [prompts(length), *(torch.full((3, 2, 1), length + step) for step in range(steps))]


def test_every_type_of_transformers_is_tested() -> None:
    assert set(SETTINGS) == {"default", *ROPE_INIT_FUNCTIONS}


@pytest.mark.parametrize("published", [True, False], ids=["published", "transformers5"])
@pytest.mark.parametrize("rope_type", SETTINGS)
def test_angles_equal_transformers_in_prefill_and_decoding(rope_type: str, published: bool) -> None:
    config = text_config(rope_type, published)
    module = MultimodalRotary(config, torch.float32)
    for length in LENGTHS:
        reference = text_rotary(copy.deepcopy(config))  # transformers keeps the longest length it met
        for positions in decoded(length):
            expected = reference(torch.zeros(1), positions)
            assert all(map(torch.equal, module(positions), expected)), (rope_type, int(positions.max()))
    forms_table.built(
        forms_table.ROTARY, f"`{rope_type}`, as {'published' if published else 'transformers 5 saves it'}"
    )


@pytest.mark.parametrize("rope_type", [name for name in SETTINGS if name != "default"])
def test_a_type_is_no_other(rope_type: str) -> None:
    """The proof that the test above can fail: plain frequencies are none of these."""
    plain = MultimodalRotary(text_config("default"), torch.float32)
    scaled = MultimodalRotary(text_config(rope_type), torch.float32)
    positions = prompts(CONTEXT + 8)
    assert (plain(positions)[0] - scaled(positions)[0]).abs().max() > 0.1


@pytest.mark.parametrize("settings", YARN_SETTINGS, ids=lambda settings: "-".join(settings))
def test_every_setting_of_yarn_is_used(settings: dict[str, Any]) -> None:
    changed, plain = text_config("yarn", **settings), text_config("yarn")
    positions = prompts(CONTEXT)
    angles = MultimodalRotary(changed, torch.float32)(positions)
    assert all(map(torch.equal, angles, text_rotary(changed)(torch.zeros(1), positions)))
    assert not torch.equal(angles[0], MultimodalRotary(plain, torch.float32)(positions)[0])
    assert not list(warn_of_ignored_rotary(changed))


class EveryType(nn.Module):
    """The rotary modules of all types, traced together because tracing takes seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.modules_by_type = nn.ModuleList(MultimodalRotary(text_config(name), torch.float32) for name in SETTINGS)

    def forward(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(table for module in self.modules_by_type for table in module(position_ids))


def test_the_traced_modules_compute_the_same() -> None:
    """After simplification, in onnxruntime: nothing about the length was folded."""
    shape = ("batch_size", "sequence_length", 2 * HALF)
    outputs = tuple(Tensor(f"{table}_{name}", "float", shape) for name in SETTINGS for table in ("cos", "sin"))
    graph = Graph("rotary", (Tensor("position_ids", "int64", (3, *shape[:2])),), outputs)
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    model = simplify(trace(Submodule(graph, EveryType().eval(), mode), torch.float32))
    session: Any = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    for length in LENGTHS:
        references = [text_rotary(text_config(name)) for name in SETTINGS]
        for positions in decoded(length, steps=12):
            expected = [table for reference in references for table in reference(torch.zeros(1), positions)]
            tables = session.run(None, {"position_ids": positions.numpy()})
            for tensor, table, value in zip(outputs, tables, expected, strict=True):
                assert (torch.from_numpy(table) - value).abs().max() < 5e-5, (tensor.name, int(positions.max()))


def test_half_precision_rounds_the_scaled_angles_as_transformers_does() -> None:
    config = text_config("yarn")
    expected = text_rotary(config)(torch.zeros(1, dtype=torch.float16), prompts(CONTEXT))
    assert all(map(torch.equal, MultimodalRotary(config, torch.float16)(prompts(CONTEXT)), expected))


@pytest.mark.parametrize("sections", [[6, 5, 5], [24, 20, 20], [16, 0, 0], [2, 2, 2], [0, 16, 16]])
def test_any_sections_read_the_axes_that_transformers_reads(sections: list[int]) -> None:
    config = text_config("default", mrope_section=sections)
    expected = text_rotary(config)(torch.zeros(1), prompts(99))
    assert all(map(torch.equal, MultimodalRotary(config, torch.float32)(prompts(99)), expected))
    assert len(mrope_axes(sections, HALF)) == HALF


def test_missing_sections_are_transformers_default_and_named() -> None:
    config = text_config("yarn")
    del config.rope_parameters["mrope_section"]
    expected = text_rotary(config)(torch.zeros(1), prompts(99))
    assert all(map(torch.equal, MultimodalRotary(config, torch.float32)(prompts(99)), expected))
    assert any("no mrope_section" in line for line in warn_of_ignored_rotary(config))


def warn_of_ignored_rotary(text: Any) -> list[str]:
    config = Qwen3VLConfig.from_dict(json.loads((TINY / "config.json").read_text("utf-8")))
    config.text_config = text
    return list(warn_of_ignored(config))


@pytest.mark.parametrize(
    ("rope_type", "ignored"),
    [
        ("default", {"mrope_interleaved": False}),
        ("default", {"partial_rotary_factor": 0.5}),
        ("default", {"factor": 3.0}),
        ("yarn", {"low_freq_factor": 2.0}),
        ("dynamic", {"original_max_position_embeddings": 7}),
        ("longrope", {"beta_fast": 9.0}),
    ],
)
def test_what_transformers_ignores_is_named_and_changes_nothing(rope_type: str, ignored: dict[str, Any]) -> None:
    config = text_config(rope_type, **ignored)
    (name,) = ignored
    assert [name in line and "transformers ignores" in line for line in warn_of_ignored_rotary(config)] == [True]
    with_key = MultimodalRotary(config, torch.float32)(prompts(CONTEXT + 8))
    assert all(
        map(torch.equal, with_key, MultimodalRotary(text_config(rope_type), torch.float32)(prompts(CONTEXT + 8)))
    )


@pytest.mark.parametrize("rope_type", SETTINGS)
def test_nothing_is_said_about_settings_that_are_used(rope_type: str) -> None:
    assert warn_of_ignored_rotary(text_config(rope_type)) == []


def test_a_context_shorter_than_it_is_scaled_to_is_named() -> None:
    (line,) = warn_of_ignored_rotary(text_config("yarn", factor=8.0))
    assert "1024" in line and "max_position_embeddings is 512" in line


def test_a_dynamic_context_is_as_long_as_its_factor_makes_it() -> None:
    assert context_length(text_config("dynamic")) == 4 * CONTEXT
    assert {context_length(text_config(name)) for name in SETTINGS if name != "dynamic"} == {CONTEXT}


def test_a_mixture_has_the_same_angles() -> None:
    raw = mixture_config(json.loads((TINY / "config.json").read_text("utf-8")))
    raw["text_config"]["rope_parameters"] |= {"rope_type": "yarn", **SETTINGS["yarn"]}
    config = Qwen3VLMoeConfig.from_dict(raw).text_config
    expected = Qwen3VLMoeTextRotaryEmbedding(config)(torch.zeros(1), prompts(CONTEXT))
    assert all(map(torch.equal, MultimodalRotary(config, torch.float32)(prompts(CONTEXT)), expected))


def test_dense_models_and_mixtures_are_both_known() -> None:
    assert {name: module.__name__ for name, module in TEXT.items()} == {
        "qwen3_vl_text": "Qwen3VLTextRotaryEmbedding",
        "qwen3_vl_moe_text": "Qwen3VLMoeTextRotaryEmbedding",
    }
