"""Where prompt lookup is used: unasked, asked for, and refused by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from parity_tests.fixtures.commands import invoke
from qwen3vl_export.artifact import Artifact, open_artifact
from qwen3vl_export.errors import InputError
from qwen3vl_export.runtime import Qwen3VL
from qwen3vl_export.runtime import generate as generate_module
from qwen3vl_export.runtime.prompts.messages import as_messages
from qwen3vl_export.runtime.speculation import (
    EIGHT_BITS,
    FLOAT,
    UNPACKED,
    Cost,
    PromptLookup,
)


def test_it_is_refused_by_name_where_the_answer_would_change(tiny_artifact: Path) -> None:
    model = Qwen3VL.load(tiny_artifact, threads=1, check=False)
    with pytest.raises(InputError, match=r"^prompt_lookup: of 2 rows in a batch .*Leave it out"):
        model.generate_batch(["Hi", "Hello"], 2, prompt_lookup=True)
    assert len(model.generate_batch(["Hi", "Hello"], 2)) == 2
    rounding = model_of(model.artifact, {"method": "int8_dynamic"})
    with pytest.raises(InputError, match=r"^prompt_lookup: int8_dynamic rounds the tokens of a call together"):
        rounding.stream("Hi", prompt_lookup=True)
    assert rounding.decide_lookup(1, None) is None


def model_of(artifact: Artifact, plan: dict[str, Any], model_type: str = "qwen3_vl") -> Qwen3VL:
    """The model as if its recipe quantized the decoder in this way."""
    manifest = artifact.manifest
    recipe = {**manifest.recipe, "quantization": {"decoder_model_merged": plan}}
    facts = dataclasses.replace(manifest.facts, model_type=model_type)
    return Qwen3VL(Artifact(artifact.root, dataclasses.replace(manifest, recipe=recipe, facts=facts)), threads=1)


@pytest.mark.parametrize(
    ("rows", "asked", "model_type", "used"),
    [
        (1, None, "qwen3_vl", True),
        (1, False, "qwen3_vl", False),
        (2, None, "qwen3_vl", False),
        (2, False, "qwen3_vl", False),
        (1, None, "qwen3_vl_moe", False),
        (1, True, "qwen3_vl_moe", True),
    ],
)
def test_where_it_is_used(tiny_artifact: Path, rows: int, asked: bool | None, model_type: str, used: bool) -> None:
    model = model_of(open_artifact(tiny_artifact, check=False), {"method": "none"}, model_type)
    assert model.decide_lookup(rows, asked) == (FLOAT if used else None)


@pytest.mark.parametrize(
    ("plan", "cost"),
    [
        ({"method": "none"}, FLOAT),
        ({"method": "int8", "accuracy_level": 0}, FLOAT),
        ({"method": "int8", "accuracy_level": 4}, EIGHT_BITS),
        ({"method": "int4", "accuracy_level": 4}, EIGHT_BITS),
        ({"method": "int4", "accuracy_level": 0}, UNPACKED),
        ({"method": "source", "accuracy_level": 1}, UNPACKED),
    ],
)
def test_what_a_draft_costs_follows_from_the_recipe(tiny_artifact: Path, plan: dict[str, Any], cost: Cost) -> None:
    model = model_of(open_artifact(tiny_artifact, check=False), plan)
    assert model.decide_lookup(1, True) == cost
    assert model.decide_lookup(1, None) == (None if plan.get("accuracy_level") == 4 else cost)


def test_commands_and_calls_have_it_on_unless_told_otherwise(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(generate_module, "PromptLookup", lambda *given: made.append(given) or PromptLookup(*given))
    options = ("run", tiny_artifact, "--prompt", "Count to nine.", "--max-new-tokens", 4)
    texts = [invoke(*options, *more).stdout for more in ((), ("--no-prompt-lookup",), ("--prompt-lookup",))]
    assert len(made) == 2 and len({*texts}) == 1
    model = Qwen3VL.load(tiny_artifact, threads=1, check=False)
    assert model.generate("Count to nine.", 4) == model.generate("Count to nine.", 4, prompt_lookup=False)
    assert len(made) == 3
    assert made[-1][1] == {*model.stop_ids, model.facts.image_token_id, model.facts.video_token_id}
    list(model.generate_steps(model.prepare([as_messages("Hi")]), 2))  # as the harness calls it
    assert len(made) == 3
