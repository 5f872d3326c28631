"""The checkpoints of holes on which memory is measured have the parts of real ones, and are read as them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from parity_tests.fixtures.official import config, published_shapes
from parity_tests.fixtures.sparse_forms import FORMS, LORA, QUANTIZED, SINGLE_EXPERTS, write_sparse_form
from qwen3vl_export.exporter.checkpoint import open_checkpoint


@pytest.mark.parametrize("form", QUANTIZED)
def test_a_matrix_has_the_parts_that_its_form_stores(form: str) -> None:
    definition, parts = QUANTIZED[form]
    stored, _ = definition.quantize(torch.randn(256, 384))
    assert {end: (tuple(tensor.shape), tensor.dtype) for end, tensor in stored.items()} == parts(256, 384)


@pytest.mark.parametrize("form", FORMS)
def test_every_tensor_is_read_and_takes_no_disk(form: str, tmp_path: Path) -> None:
    model_config = config("30b-a3b" if form == SINGLE_EXPERTS else "8b", layers=1, depth=1, vocab_size=64)
    opened = open_checkpoint(str(write_sparse_form(tmp_path, form, model_config)))
    assert bool(opened.adapters) == (form == LORA)
    assert (opened.quantization is not None) == (form in QUANTIZED)
    shapes = published_shapes(model_config)
    transposed = {name: (s[0], s[2], s[1]) if ".mlp.experts." in name else s for name, s in shapes.items()}
    assert {name: reader.shape for name, reader in opened.tensors.items()} == transposed
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert not opened.read(name, slice(3, 9)).any()
    assert sum(path.stat().st_blocks for path in tmp_path.rglob("*.safetensors")) * 512 < 1e6
