"""A stored head is the token table, or one of its own, exactly where it is so in transformers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration

from parity_tests.fixtures import forms_table
from parity_tests.fixtures.checkpoint_forms import (
    Tensors,
    assert_as_transformers,
    changed,
    edit_config,
    opened_and_checked,
    refusal,
    write,
)
from parity_tests.fixtures.forms_table import HEADS
from parity_tests.fixtures.paths import TINY
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.exporter.checkpoint.names import HEAD, TABLE
from qwen3vl_export.exporter.pipeline import build
from qwen3vl_export.recipe import load_recipe

STORED_HEADS: dict[
    str, tuple[Callable[[Tensor], Tensor | None], bool]
] = {  # of the table -> head, whether they are tied
    "no head": (lambda table: None, True),
    "an equal head": (lambda table: table, True),
    "a head with another last value": (lambda table: changed(table, 7.0), False),
    "a head equal in float32": (lambda table: table.float(), True),
    "a head that differs beyond bfloat16": (
        lambda table: changed(table.float(), float(table[-1, -1]) * (1 + 2**-20)),
        False,
    ),
    "a head with a NaN": (lambda table: changed(table, float("nan")), False),
}


@pytest.mark.parametrize("form", STORED_HEADS)
def test_a_head_that_differs_from_the_table_is_a_head_of_its_own(form: str, tmp_path: Path, tiny: Tensors) -> None:
    make, tied = STORED_HEADS[form]
    head = make(tiny[TABLE])
    opened, warnings = opened_and_checked(write(tmp_path, tiny if head is None else tiny | {HEAD: head}))
    assert opened.tied is tied
    assert any("tie_word_embeddings" in line and HEAD in line for line in warnings) is not tied
    assert_as_transformers(opened, torch.float32)
    forms_table.built(HEADS, form, tmp_path, warnings, "one table" if tied else "two tables")


def test_a_head_of_its_own_is_in_the_artifact(tmp_path: Path, tiny: Tensors) -> None:
    head = tiny[TABLE].flip(0)
    root = tmp_path / "checkpoint"
    shutil.copytree(TINY, root)
    write(root, tiny | {HEAD: head})
    recipe = tmp_path / "text.yaml"
    recipe.write_text(
        f"checkpoint: {{source: {root}}}\n"
        "graphs: [embed_tokens, decoder_model_merged]\n"
        "packaging: {tied_head: link}\n"
    )
    built = build(load_recipe(recipe), out=tmp_path / "out", log=lambda line: None)
    for graph, expected in (("embed_tokens", tiny[TABLE]), ("decoder_model_merged", head)):
        model = onnx.load(built / "onnx" / f"{graph}.onnx")
        tables = [t for t in model.graph.initializer if tuple(t.dims) == tuple(head.shape)]
        (table,) = (onnx.numpy_helper.to_array(tensor) for tensor in tables)
        assert (table == expected.float().numpy()).all()


def test_zeros_of_both_signs_are_equal(tmp_path: Path, tiny: Tensors) -> None:
    table, head = changed(tiny[TABLE], 0.0), changed(tiny[TABLE], -0.0)
    opened, _ = opened_and_checked(write(tmp_path, tiny | {TABLE: table, HEAD: head}))
    assert opened.tied
    assert_as_transformers(opened)


def test_a_head_larger_than_a_strip_is_compared_to_its_end(
    tmp_path: Path, tiny: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwen3vl_export.exporter.checkpoint import tensors

    monkeypatch.setattr(tensors, "STRIP_BYTES", 1000)
    assert open_checkpoint(str(write(tmp_path, tiny | {HEAD: tiny[TABLE]}))).tied
    assert not open_checkpoint(str(write(tmp_path, tiny | {HEAD: changed(tiny[TABLE], 7.0)}))).tied


def test_a_tied_head_without_a_table_is_the_table(tmp_path: Path, tiny: Tensors) -> None:
    tensors = {name: tensor for name, tensor in tiny.items() if name != TABLE} | {HEAD: tiny[TABLE]}
    opened, _ = opened_and_checked(write(tmp_path, tensors))
    assert opened.tied
    assert_as_transformers(opened)
    forms_table.built(HEADS, "a head and no table", how="the head is the table")


def test_the_top_of_the_config_says_whether_the_head_is_tied(tmp_path: Path, tiny: Tensors) -> None:
    root = write(tmp_path, tiny | {HEAD: tiny[TABLE]})
    edit_config(root, lambda config: config.update(tie_word_embeddings=False))
    opened, warnings = opened_and_checked(root)
    assert not opened.tied and not warnings
    assert_as_transformers(opened)
    write(root, tiny)
    assert "tensor lm_head.weight [544, 128] is missing" in refusal(root)


def test_a_head_of_another_shape_is_refused_as_in_transformers(tmp_path: Path, tiny: Tensors) -> None:
    root = write(tmp_path, tiny | {HEAD: tiny[TABLE][:10]})
    message = refusal(root)
    assert "lm_head.weight is [10, 128], config.json asks for [544, 128]" in message
    forms_table.refused(HEADS, "a head of another shape", message, root)
    with pytest.raises(RuntimeError, match="mismatch"):
        Qwen3VLForConditionalGeneration.from_pretrained(root)
