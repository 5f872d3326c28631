"""Long prompts: bounded logits, attention that stores no scores, few calls; and faults still show."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from parity_tests.fixtures.paths import TINY
from parity_tests.harness.cases.matrix import Case, PromptSpec, load_matrix
from parity_tests.harness.judging.outcome import Outcome
from parity_tests.harness.judging.verdicts import load_profile
from parity_tests.harness.plan import carry_out, check_of
from parity_tests.harness.sides.bench import Bench
from parity_tests.harness.sides.pytorch import attention, inputs
from parity_tests.harness.sides.pytorch.inputs import tokens_compared
from qwen3vl_export.contract import DECODER, EMBEDDINGS

from ...fixtures.torch_sessions import torch_bench

VOCABULARY = 544
COMPARED = 14  # tokens of a row, fewer than the prompts have
SINGLE = Case(name="single", tier="quick", images=["drawn 64x96"], ask="Describe the picture.")
BATCH = Case(
    name="batch",
    tier="quick",
    batch=[PromptSpec(images=["drawn 64x96"], ask="Describe the picture."), PromptSpec(ask="Hi!")],
)
SHORT = {"new_tokens": 3, "forced_tokens": 20, "prefill_chunk": 5}
MATRIX = load_matrix().model_copy(update={**SHORT, "cases": [SINGLE, BATCH]})


@pytest.fixture(scope="module")
def shared_bench() -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "MOST_LOGITS", COMPARED * VOCABULARY)
        yield torch_bench(TINY, MATRIX, load_profile("float32"))


@pytest.fixture
def bench(shared_bench: Bench) -> Bench:
    sessions: Any = shared_bench.runtime.sessions
    sessions.after.clear()
    return shared_bench


def outcome_of(bench: Bench, stage: str, case: Case) -> Outcome:
    return carry_out(bench, check_of(stage, case))


@pytest.mark.parametrize(
    ("rows", "length", "compared"),
    [(1, 1053, 1053), (1, 1054, 1053), (1, 8600, 1053), (3, 351, 351), (3, 352, 351), (2000, 5, 1)],
)
def test_logits_of_a_prompt_are_bounded(rows: int, length: int, compared: int) -> None:
    assert tokens_compared(np.empty((rows, length)), 151_936) == compared


@pytest.mark.parametrize("stage", ["decoder", "prefill"])
@pytest.mark.parametrize(("case", "rows"), [(SINGLE, 1), (BATCH, 2)], ids=["single", "batch"])
def test_the_last_tokens_of_a_long_prompt_are_compared_and_counted(
    bench: Bench, stage: str, case: Case, rows: int
) -> None:
    outcome = outcome_of(bench, stage, case)
    assert outcome.passed, outcome.message
    assert outcome.measures["positions"] == COMPARED // rows * rows
    assert outcome.measures["prompt_tokens"] == bench.inputs(case).input_ids.shape[1]
    assert outcome.measures["compared"] == outcome.measures["positions"] * VOCABULARY


@pytest.mark.parametrize("stage", ["teacher_forced", "chunked", "decode", "generate"])
def test_the_other_stages_are_not_shortened(bench: Bench, stage: str) -> None:
    outcome = outcome_of(bench, stage, SINGLE)
    assert outcome.passed, outcome.message
    assert outcome.measures.get("positions", 20) == (3 if stage == "decode" else 20)


@pytest.mark.parametrize("stage", ["decoder", "prefill", "teacher_forced", "decode"])
def test_the_decoder_is_asked_for_no_more_logits_than_are_compared(
    bench: Bench, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, kept = bench.runtime.decode, []

    def record(*args: Any, num_logits_to_keep: int = 0) -> Any:
        kept.append(num_logits_to_keep)
        return decode(*args, num_logits_to_keep=num_logits_to_keep)

    monkeypatch.setattr(bench.runtime, "decode", record)
    case = SINGLE.model_copy(update={"ask": f"Describe the picture in the {stage}."})  # read by no other test
    outcome = outcome_of(bench, stage, case.model_copy(update={"name": f"asked-{stage}".replace("_", "-")}))
    assert outcome.passed, outcome.message
    assert set(kept) == {{"teacher_forced": MATRIX.forced_tokens, "decode": 1}.get(stage, COMPARED)}


def test_a_fault_of_the_first_token_shows_in_the_last_ones(bench: Bench) -> None:
    def off(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = outputs["inputs_embeds"].copy()
        rows[:, 0] = rows[:, 1]
        return {**outputs, "inputs_embeds": rows}

    sessions: Any = bench.runtime.sessions
    sessions.after[EMBEDDINGS] = off
    assert not outcome_of(bench, "prefill", SINGLE).passed


@pytest.mark.parametrize("from_end", [1, COMPARED])
def test_the_worst_token_is_numbered_within_the_whole_prompt(bench: Bench, from_end: int) -> None:
    def off(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        logits = outputs["logits"].copy()
        logits[:, -from_end] += 1
        return {**outputs, "logits": logits}

    sessions: Any = bench.runtime.sessions
    sessions.after[DECODER] = off
    length = bench.inputs(SINGLE).input_ids.shape[1]
    assert f"token {length - from_end} of {length} " in outcome_of(bench, "decoder", SINGLE).message


@pytest.mark.parametrize(("length", "chunk"), [(1, 16), (1024, 16), (1025, 17), (8600, 135)])
def test_a_long_prompt_is_read_in_at_most_so_many_calls(length: int, chunk: int) -> None:
    matrix = load_matrix()
    assert matrix.chunk_of(length) == chunk
    assert -(-length // chunk) <= matrix.prefill_calls


def test_attention_stores_no_scores_where_they_would_be_many(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 9, 8) for heads in (4, 2, 2))
    module: Any = SimpleNamespace(num_key_value_groups=2, training=False, is_causal=True)
    mask = torch.full((1, 1, 9, 9), torch.finfo(torch.float32).min).triu(1)
    arguments = {"attention_mask": mask, "scaling": 8**-0.5}
    monkeypatch.setattr(attention, "MOST_SCORES", 2 * 4 * 9 * 9)
    expected, scores = attention.attend(module, query, key, value, **arguments)
    assert scores is not None and scores.shape == (2, 4, 9, 9)
    monkeypatch.setattr(attention, "MOST_SCORES", 2 * 4 * 9 * 9 - 1)
    attended, none = attention.attend(module, query, key, value, **arguments)
    assert none is None
    torch.testing.assert_close(attended, expected, rtol=0, atol=1e-6)
