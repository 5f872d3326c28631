"""The harness cannot be fooled: nothing compared, NaN, missing measures, crashes and runs cut short all fail.

Both sides are PyTorch here (`torch_sessions.py`), so that a mistake is exactly the one a test plants.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from parity_tests.fixtures.paths import TINY
from parity_tests.harness.cases.matrix import Case, load_matrix
from parity_tests.harness.checks.heads import HEAD_STAGES
from parity_tests.harness.checks.stages import STAGES
from parity_tests.harness.evidence.report import Report, counted, show, write
from parity_tests.harness.judging.outcome import Finding, Outcome, judge
from parity_tests.harness.judging.verdicts import load_profile
from parity_tests.harness.plan import Check, carry_out, check_of
from parity_tests.harness.sides.bench import Bench
from parity_tests.harness.sides.pytorch.reference import Greedy
from parity_tests.harness.verify import run
from qwen3vl_export.contract import DECODER, EMBED_TOKENS, EMBEDDINGS, VISION_ENCODER
from qwen3vl_export.errors import ParityError
from qwen3vl_export.evidence import CheckpointSource
from qwen3vl_export.promise import FROM_SOURCE, PACKAGED, TASK

from ...fixtures.torch_sessions import torch_bench

PROFILE = load_profile("float32")
CASE = Case(name="small", tier="quick", images=["drawn 64x96", "drawn 96x64"], ask="Describe the first picture.")
GRIDS = Case(name="grids", tier="quick", grids=["1x2x2", "2x4x6"])
MATRIX = load_matrix().model_copy(update={"new_tokens": 6, "forced_tokens": 20, "prefill_chunk": 5, "cases": [CASE]})


@pytest.fixture(scope="module")
def shared_bench() -> Bench:
    return torch_bench(TINY, MATRIX, PROFILE)


@pytest.fixture
def bench(shared_bench: Bench) -> Bench:
    """A bench without mistakes and without memory."""
    shared_bench.results.forget()
    sessions: Any = shared_bench.runtime.sessions
    sessions.before.clear()
    sessions.after.clear()
    return shared_bench


def plant(bench: Bench, graph: str, output: str, mistake: Callable[[np.ndarray], np.ndarray]) -> None:
    sessions: Any = bench.runtime.sessions
    sessions.after[graph] = lambda outputs: {**outputs, output: mistake(outputs[output])}


def outcome_of(bench: Bench, stage: str, case: Case = CASE) -> Outcome:
    return carry_out(bench, check_of(stage, case))


def judge_measures(**measures: float | None) -> Outcome:
    return judge("vision", "case", Finding(measures, compared=1), PROFILE, 0.0)


@pytest.mark.parametrize("stage", STAGES)
def test_equal_sides_pass(bench: Bench, stage: str) -> None:
    outcome = outcome_of(bench, stage)
    assert outcome.passed, outcome.message
    assert outcome.measures["compared"]


def test_a_check_that_compared_nothing_fails() -> None:
    outcome = judge(
        "vision", "case", Finding({"scaled_max_abs": 0.0, "worst_token_cosine": 1.0}, compared=0), PROFILE, 0.0
    )
    assert not outcome.passed
    assert "compared 0" in outcome.message


def test_an_unmeasured_value_fails_and_stays_null() -> None:
    outcome = judge_measures(scaled_max_abs=None, worst_token_cosine=1.0)
    assert not outcome.passed
    assert "scaled_max_abs not measured" in outcome.message
    assert json.loads(json.dumps(outcome.to_json()))["measures"]["scaled_max_abs"] is None


def test_a_missing_measure_fails() -> None:
    assert not judge_measures(worst_token_cosine=1.0).passed


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("measure", ["scaled_max_abs", "worst_token_cosine"])
def test_non_finite_measures_fail(bad: float, measure: str) -> None:
    assert not judge_measures(**{"scaled_max_abs": 0.0, "worst_token_cosine": 1.0, measure: bad}).passed


def test_an_outcome_without_verdicts_fails() -> None:
    assert not Outcome("vision", "case", 0.0).passed


def test_a_stage_without_rules_is_refused() -> None:
    with pytest.raises(ParityError, match="no rule for novelty"):
        judge("novelty", "case", Finding({}, compared=1), PROFILE, 0.0)


def test_every_stage_has_rules_with_a_reason_and_a_source() -> None:
    downstream = {"resized_elsewhere"}
    stages = {*STAGES, *HEAD_STAGES}
    assert {"sampling", FROM_SOURCE, PACKAGED, *stages, *downstream, "exam", "accuracy", TASK} == set(PROFILE.rules)
    assert all(rule.reason and rule.source for rules in PROFILE.rules.values() for rule in rules)


@pytest.mark.parametrize(
    ("graph", "output", "stages"),
    [
        (VISION_ENCODER, "image_features", ["vision", "prefill"]),
        (EMBED_TOKENS, "inputs_embeds", ["embeddings"]),
        (EMBEDDINGS, "inputs_embeds", ["embeddings"]),
        (DECODER, "logits", ["decoder", "prefill", "teacher_forced", "decode"]),
    ],
)
def test_nan_from_a_graph_fails(bench: Bench, graph: str, output: str, stages: list[str]) -> None:
    def put_nan(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values.reshape(-1)[-1] = np.nan
        return values

    plant(bench, graph, output, put_nan)
    assert [stage for stage in stages if outcome_of(bench, stage).passed] == []


@pytest.mark.parametrize("graph", [EMBED_TOKENS, EMBEDDINGS])
def test_a_wrong_row_of_either_table_is_named(bench: Bench, graph: str) -> None:
    def off(values: np.ndarray) -> np.ndarray:
        values[0, 0, 0] += 1
        return values

    plant(bench, graph, "inputs_embeds", off)
    outcome = outcome_of(bench, "embeddings")
    assert outcome.measures["differences"] == 1
    assert "first at row 0, token 0" in outcome.message and outcome.message.endswith(f"of {graph}")


def test_one_wrong_token_is_seen(bench: Bench) -> None:
    def flip(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[3] *= -1
        return values

    plant(bench, VISION_ENCODER, "image_features", flip)
    outcome = outcome_of(bench, "vision", GRIDS)
    assert not outcome.passed
    assert "token 3 of 13" in outcome.message


def test_a_difference_in_one_deepstack_map_is_named(bench: Bench) -> None:
    def shift(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[:, 2 * 128 : 3 * 128] += 1e-3  # features, map 0, map 1, map 2 are 128 columns each
        return values

    plant(bench, VISION_ENCODER, "image_features", shift)
    assert "worst in deepstack_1" in outcome_of(bench, "vision").message


def test_a_missing_row_is_a_shape_and_not_a_crash(bench: Bench) -> None:
    plant(bench, VISION_ENCODER, "image_features", lambda values: values[:-1])
    assert "the reference has" in outcome_of(bench, "vision").message


def test_a_crash_fails_its_check_alone(bench: Bench) -> None:
    def crash(values: np.ndarray) -> np.ndarray:
        raise RuntimeError("no such kernel")

    plant(bench, DECODER, "logits", crash)
    assert "RuntimeError: no such kernel" in outcome_of(bench, "decoder").message
    assert outcome_of(bench, "vision").passed


def test_other_tokens_fail_and_say_where(bench: Bench) -> None:
    plant(bench, DECODER, "logits", lambda values: np.roll(values, 1, axis=-1))
    outcome = outcome_of(bench, "generate")
    assert not outcome.passed
    assert outcome.measures["identical_prefix"] == 0
    assert "row 0 parts at token 0" in outcome.message


@pytest.mark.parametrize(("gap", "passes"), [(4e-4, True), (4e-3, False)])
def test_a_near_tie_passes_and_is_listed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, gap: float, passes: bool
) -> None:
    """The two best tokens of the first step, `gap` apart, in one order on one side and in the other on the other."""
    truth = bench.reference.generate(bench.inputs(CASE), MATRIX.new_tokens)
    second, best = np.argsort(truth.logits[0, 0])[-2:].tolist()
    reference, candidate, ids = truth.logits.copy(), truth.logits.copy(), truth.ids.copy()
    reference[0, 0, second] = reference[0, 0, best] - gap
    candidate[0, 0, second] = candidate[0, 0, best] + gap
    ids[0, 0] = second
    monkeypatch.setattr(bench.reference, "generate", lambda *args, **kwargs: Greedy(truth.ids, reference))
    monkeypatch.setattr(bench, "generate", lambda *args, **kwargs: Greedy(ids, candidate))
    outcome = outcome_of(bench, "generate")
    assert outcome.passed == passes, outcome.message
    assert len(outcome.differences) == 1
    assert (outcome.differences[0].reference_token, outcome.differences[0].candidate_token) == (best, second)
    assert len(outcome.near_ties) == int(passes)


def report(outcomes: list[Outcome], planned: int) -> Report:
    return Report("tiny", "0" * 64, CheckpointSource("x", "local"), "quick", 1, PROFILE, outcomes, planned)


GOOD = judge_measures(scaled_max_abs=0.0, worst_token_cosine=1.0)


@pytest.mark.parametrize(
    ("outcomes", "planned", "passed"),
    [([GOOD], 1, True), ([], 0, False), ([GOOD], 2, False), ([GOOD, judge_measures(scaled_max_abs=1.0)], 2, False)],
    ids=["all good", "nothing planned", "not all carried out", "one failed"],
)
def test_verdict_of_a_report(outcomes: list[Outcome], planned: int, passed: bool) -> None:
    assert report(outcomes, planned).passed is passed
    assert json.loads(report(outcomes, planned).to_json())["passed"] is passed


def test_the_summary_is_null_where_nothing_was_measured() -> None:
    summary = json.loads(report([judge_measures(scaled_max_abs=None, worst_token_cosine=1.0)], 1).to_json())["summary"]
    assert summary["decoder"] is None
    assert summary["vision"]["worst"]["scaled_max_abs"] is None


def test_nan_is_the_worst_and_readable_in_the_json() -> None:
    outcomes = [judge_measures(scaled_max_abs=value, worst_token_cosine=1.0) for value in (0.5, math.nan, 0.1)]
    assert json.loads(report(outcomes, 3).to_json())["summary"]["vision"]["worst"]["scaled_max_abs"] == "NaN"


def test_outcomes_survive_json() -> None:
    outcome = judge_measures(scaled_max_abs=math.inf, worst_token_cosine=None)
    assert Outcome.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome


def test_junit_counts_failures_and_what_did_not_run() -> None:
    suite = ElementTree.fromstring(
        report([GOOD, judge_measures(scaled_max_abs=1.0, worst_token_cosine=1.0)], 3).to_junit()
    )
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    failure = suite.find("testcase/failure")
    assert failure is not None and "scaled_max_abs 1" in failure.get("message", "")


def test_the_terminal_shows_failures_and_the_verdict() -> None:
    console = Console(record=True, width=160)
    show(
        report(
            [GOOD, replace(judge_measures(scaled_max_abs=1.0, worst_token_cosine=1.0), diagnosis="a [bold] guess")], 2
        ),
        console,
    )
    text = console.export_text()
    assert "FAILED: 1 of 2 checks of the quick matrix failed in" in text
    assert "Looks like: a [bold] guess" in text


@pytest.mark.parametrize(
    ("outcomes", "planned", "expected"),
    [
        ([GOOD], 1, "1 of 1 checks of the quick matrix"),
        ([GOOD, judge_measures(scaled_max_abs=1.0)], 2, "1 of 2 checks of the quick matrix failed"),
        ([GOOD], 3, "0 of 3 checks of the quick matrix failed, 2 did not run"),
        ([], 0, "0 of 0 checks of the quick matrix failed"),
    ],
)
def test_the_verdict_counts_what_failed(outcomes: list[Outcome], planned: int, expected: str) -> None:
    assert counted(report(outcomes, planned)) == expected


def test_a_report_is_written_whole(tmp_path: Path) -> None:
    write(tmp_path / "parity.json", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["parity.json"]


def test_a_run_of_nothing_fails(bench: Bench) -> None:
    assert not run(bench, "quick", only=lambda check: False).passed


def test_run_tracks_and_reports(bench: Bench) -> None:
    seen: list[str] = []

    def track(checks: tuple[Check, ...]) -> list[Check]:
        seen.extend(check.id for check in checks)
        return list(checks)

    result = run(bench, "quick", track, only=lambda check: check.id == "vision[small]")
    assert seen == ["vision[small]"]
    assert result.passed
    assert result.seconds["pytorch"] > 0
