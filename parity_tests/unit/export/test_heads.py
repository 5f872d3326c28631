"""Heads: which one a checkpoint tells, which weights its decoder has, and what its settings say."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from qwen3vl_export import contract
from qwen3vl_export.contract import EMBEDDING, HEADS, RERANKER, TEXT
from qwen3vl_export.errors import CheckpointError, RecipeError
from qwen3vl_export.exporter.checkpoint import Checkpoint, heads, open_checkpoint
from qwen3vl_export.exporter.checkpoint.names import HEAD, SCORE, TABLE
from qwen3vl_export.exporter.settings import write_settings
from qwen3vl_export.exporter.skeletons import recipe_for
from qwen3vl_export.exporter.submodules import build_submodule, check_tensors
from qwen3vl_export.recipe import load_recipe

from ...fixtures.paths import TINY

ST = "sentence_transformers.models."  # what modules.json calls modules


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The tiny checkpoint, to be changed."""
    return Path(shutil.copytree(TINY, tmp_path / "copy"))


@pytest.fixture
def untied(copy: Path) -> Path:
    """The tiny checkpoint with an output head of its own, twice the token table."""
    tensors = load_file(copy / "model.safetensors")
    tensors[HEAD] = 2 * tensors[TABLE]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    edit_config(copy, tie_word_embeddings=False)
    return copy


def edit_config(root: Path, **values: Any) -> None:
    path = root / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


def with_head(root: Path, head: str) -> Checkpoint:
    return replace(open_checkpoint(str(root)), chosen_head=head)


def decoder_weights(checkpoint: Checkpoint) -> set[str]:
    """The decoder's weights that are not of its layers."""
    module = build_submodule(checkpoint, contract.DECODER, "ort", torch.float32).module
    return {name for name, _ in module.named_parameters() if ".layers." not in name}


@pytest.mark.parametrize(
    ("modules", "head"),
    [
        (["Transformer", "Pooling", "Normalize"], EMBEDDING),
        (["Transformer", "LogitScore"], RERANKER),
        (["Transformer"], TEXT),
    ],
)
def test_modules_of_sentence_transformers_tell_the_head(copy: Path, modules: list[str], head: str) -> None:
    (copy / "modules.json").write_text(json.dumps([{"type": f"{ST}{name}"} for name in modules]), "utf-8")
    opened = open_checkpoint(str(copy))
    assert opened.facts.head == head
    assert copy / "modules.json" in opened.files


def test_a_class_without_a_head_is_an_embedding_model(copy: Path) -> None:
    edit_config(copy, architectures=["Qwen3VLModel"])
    assert open_checkpoint(str(copy)).facts.head == EMBEDDING


@pytest.mark.parametrize("text", ["{}}", "[1]", '{"type": 1}', "[{}]"])
def test_modules_that_are_none_are_refused(copy: Path, text: str) -> None:
    (copy / "modules.json").write_text(text, "utf-8")
    with pytest.raises(CheckpointError, match=r"modules\.json: not a list of modules"):
        _ = open_checkpoint(str(copy)).facts


def test_the_recipe_decides_before_the_checkpoint(copy: Path) -> None:
    (copy / "modules.json").write_text(json.dumps([{"type": f"{ST}Pooling"}]), "utf-8")
    assert with_head(copy, RERANKER).facts.head == RERANKER


def test_a_missing_head_is_no_sign_but_an_error_that_says_so(untied: Path) -> None:
    tensors = load_file(untied / "model.safetensors")
    del tensors[HEAD]
    save_file(tensors, untied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight .* is missing.*write head: embedding"):
        check_tensors(open_checkpoint(str(untied)), torch.float32)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing, of which a reranker needs two rows"):
        check_tensors(with_head(untied, RERANKER), torch.float32)
    check_tensors(with_head(untied, EMBEDDING), torch.float32)


def test_only_the_weights_of_the_head_are_written(untied: Path) -> None:
    weights = {head: decoder_weights(with_head(untied, head)) - {"language_model.norm.weight"} for head in HEADS}
    assert weights == {TEXT: {HEAD}, EMBEDDING: set(), RERANKER: {SCORE}}


@pytest.mark.parametrize("form", ["tied", "untied"])
def test_a_reranker_has_the_rows_of_yes_and_no_in_this_order(form: str, request: pytest.FixtureRequest) -> None:
    root = TINY if form == "tied" else request.getfixturevalue(form)
    tensors, vocabulary = load_file(root / "model.safetensors"), AutoTokenizer.from_pretrained(root).get_vocab()
    head = tensors[TABLE if form == "tied" else HEAD]
    expected = head[[vocabulary["yes"], vocabulary["no"]]]
    checkpoint = with_head(root, RERANKER)
    assert torch.equal(checkpoint.read(SCORE), expected)
    assert torch.equal(checkpoint.read(SCORE, slice(1, 2)), expected[1:])


def test_a_tokenizer_without_the_answers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "ANSWERS", ("yes", "by no means"))
    with pytest.raises(CheckpointError, match="the tokenizer has no token by no means"):
        _ = with_head(TINY, RERANKER).tensors


@pytest.mark.parametrize(
    ("head", "output"),
    [
        (TEXT, ("logits", "float", 544)),
        (EMBEDDING, ("last_hidden_state", "float", 128)),
        (RERANKER, ("logits", "float32", 2)),
    ],
)
def test_the_contract_of_each_head(head: str, output: tuple[str, str, int]) -> None:
    declared = contract.decoder(with_head(TINY, head).facts)
    assert (declared.outputs[0].name, declared.outputs[0].dtype, declared.outputs[0].shape[-1]) == output
    text = contract.decoder(with_head(TINY, TEXT).facts)
    assert declared.inputs == text.inputs and declared.outputs[1:] == text.outputs[1:]


def test_a_recipe_takes_the_checkpoints_head_and_the_runtimes_that_know_it(copy: Path) -> None:
    recipe = load_recipe("tiny")
    answers = recipe.model_copy(update={"parity": recipe.parity.model_copy(update={"held_out": False})})
    (copy / "modules.json").write_text(json.dumps([{"type": f"{ST}Pooling"}]), "utf-8")
    lines: list[str] = []
    resolved = recipe_for(answers, open_checkpoint(str(copy)), lines.append)
    assert (resolved.head, resolved.packaging.runtimes) == (EMBEDDING, ("onnxruntime", "transformers.js"))
    assert lines == ["head embedding, as the checkpoint says; not packaged for onnxruntime-genai"]
    with pytest.raises(RecipeError, match="the exam asks questions, and the head is embedding"):
        recipe_for(recipe, open_checkpoint(str(copy)), lines.append)


def test_pictures_have_the_budget_of_the_public_code_and_answers_need_no_end(copy: Path, tmp_path: Path) -> None:
    (copy / "generation_config.json").unlink()
    edit_config(
        copy, text_config=json.loads((copy / "config.json").read_text())["text_config"] | {"eos_token_id": None}
    )
    write_settings(with_head(copy, EMBEDDING), load_recipe("tiny-embedding"), tmp_path)
    size = json.loads((tmp_path / "preprocessor_config.json").read_text("utf-8"))["size"]
    assert size == {"shortest_edge": 4 * 32 * 32, "longest_edge": 1800 * 32 * 32}
