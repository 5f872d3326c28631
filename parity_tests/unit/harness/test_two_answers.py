"""Whether a quantized graph is right, and what its precision costs: two answers from one verification."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from parity_tests.fixtures.reports import GOOD, PROFILE, page, report, validator
from parity_tests.harness.checks.dequantized import add_own_weights_rules
from parity_tests.harness.evidence.report import Report
from parity_tests.harness.judging.outcome import Finding, Outcome, judge
from parity_tests.harness.judging.verdicts import load_profile
from qwen3vl_export.evidence import Answer, Evidence
from qwen3vl_export.evidence.answers import lines as answer_lines
from qwen3vl_export.json_form import from_json


def logits(stage: str, case: str, positions: int, kl: float, worst: float, top1: float) -> Outcome:
    measures = {
        "max_abs": 0.1,
        "scaled_max_abs": 0.01,
        "mean_kl": kl,
        "worst_kl": worst,
        "top1_agreement": top1,
        "positions": positions,
    }
    return judge(stage, case, Finding(measures, compared=positions), PROFILE, 0.5)


COSTLY = report(
    logits("prefill", "text-only", 10, 0.5, 2.0, 1.0),
    logits("decode", "text-only", 30, 0.1, 0.3, 0.9),
    logits("decoder", "text-only", 10, 9.0, 9.0, 0.0),  # given PyTorch's rows: no part of the sum
    judge(
        "accuracy",
        "all-questions",
        Finding({"questions": 200, "accuracy": 0.915, "reference_accuracy": 0.935, "answer_differences": 9}, 200),
        PROFILE,
        0.5,
    ),
)


def test_what_a_precision_costs_is_pooled_over_positions() -> None:
    cost = COSTLY.precision()
    assert cost is not None
    assert cost.mean_kl == pytest.approx(0.2) and cost.worst_kl == 2.0
    assert cost.top1_agreement == pytest.approx(0.925) and cost.positions == 40
    assert list(answer_lines(COSTLY.evidence())) == [
        "graph: WRONG (4 of 4 checks failed)",
        "float32 costs: KL 0.2 on average and 2 at worst, top-1 92.5 % of 40 positions, "
        "91.5% of 200 questions right (93.5% in PyTorch)",
    ]
    assert GOOD.precision() is None
    from_json(Evidence, COSTLY.to_json())
    assert "What the precision costs" in page(COSTLY).text and "91.5 %" in page(COSTLY).text


LEVEL_4 = {"decoder_model_merged": {"method": "int4", "accuracy_level": 4}}
RECIPE: dict[str, Any] = {"target": "ort", "dtype": "float32", "quantization": LEVEL_4, "parity": {}}
OWN = add_own_weights_rules(load_profile("int4"), RECIPE, "qwen3_vl")


def quantized(right: bool, cheap: bool, text_loss: float = 0.3) -> Report:
    """A report of an int4 artifact: one check of the graph, one of the cost, and what rounding activations costs."""
    near = {
        "max_abs": 1e-5,
        "scaled_max_abs": 1e-6,
        "worst_kl": 1e-9,
        "mean_kl": 1e-9,
        "top1_agreement": 1.0,
        "top1_gap": 0.0,
    }
    far = {
        "max_abs": 9.0,
        "scaled_max_abs": 0.9,
        "worst_kl": 9.0,
        "mean_kl": 2.0,
        "top1_agreement": 0.1,
        "top1_gap": 0.5,
    }
    measures = {
        "dequantized_decoder": near if right else far,
        "prefill": near if cheap else far,
        "teacher_forced": {**near, "text_loss": text_loss},
        "rounded_decoder": far,
    }
    outcomes = [
        judge(stage, "text-only", Finding({**values, "positions": 10}, 10), OWN, 0.5)
        for stage, values in measures.items()
    ]
    return replace(report(*outcomes), profile=OWN)


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("cheap", [True, False])
def test_a_wrong_graph_and_a_coarse_precision_are_told_apart(right: bool, cheap: bool) -> None:
    written = quantized(right, cheap)
    answers = written.answers()
    assert answers.graph == Answer(1, int(not right)) and answers.cost == Answer(3, int(not cheap))
    assert written.passed == (right and cheap)
    graph, cost, rounding = answer_lines(written.evidence())
    assert graph == ("graph: right (1 checks)" if right else "graph: WRONG (1 of 1 checks failed)")
    assert cost.startswith("int4 costs: KL ") and ("ABOVE its limits in 1 of 3 checks" in cost) is not cheap
    assert rounding == "of that, 8-bit activations: KL 2 on average and 9 at worst, top-1 10 % of 10 positions"
    assert all(line in page(written).text for line in (graph, cost, rounding))
    validator().validate(json.loads(written.to_json()))


@pytest.mark.parametrize(
    ("cost", "passes", "said"),
    [
        ({"mean_kl": 2.5, "top1_agreement": None}, True, "within its limits (3 checks)"),
        ({"mean_kl": 2.5, "top1_agreement": 0.5}, False, "ABOVE its limits in 1 of 3 checks"),
        ({"mean_kl": None, "top1_agreement": None}, True, "which the recipe does not limit"),
    ],
)
def test_a_recipe_states_what_its_precision_may_cost(cost: dict[str, Any], passes: bool, said: str) -> None:
    recipe = {**RECIPE, "parity": {"cost": cost}}
    profile = add_own_weights_rules(load_profile("int4"), recipe, "qwen3_vl")
    for right in (True, False):
        old = quantized(right, cheap=False)
        judged = [
            judge(outcome.stage, outcome.case, Finding(outcome.measures, 10), profile, 0.5) for outcome in old.outcomes
        ]
        written = replace(old, outcomes=judged, profile=profile)
        assert written.passed == (passes and right)
        graph, line, *_ = answer_lines(written.evidence())
        assert graph.startswith("graph: right" if right else "graph: WRONG") and line.endswith(said)


@pytest.mark.parametrize("passes", [True, False])
def test_prefill_in_chunks_proves_the_graph_where_no_call_is_rounded_by_itself(passes: bool) -> None:
    finding = Finding({"scaled_max_abs": 0.0 if passes else 1.0, "scaled_cache_max_abs": 0.0}, 1)
    stages = ("chunked", "dequantized_chunked")
    for stage in stages:
        written = replace(report(judge(stage, "text-only", finding, OWN, 0.5)), profile=OWN)
        answers, judged = written.answers(), Answer(1, int(not passes))
        assert (answers.cost if stage == "chunked" else answers.graph) == judged


def test_a_checkpoint_that_knows_nothing_is_named() -> None:
    assert "no better than chance" in list(answer_lines(quantized(True, False, text_loss=1.02).evidence()))[-1]
    assert len(list(answer_lines(quantized(True, False, text_loss=0.4).evidence()))) == 3


def test_limits_alone_do_not_answer_for_a_quantized_graph_without_its_weights() -> None:
    unanswered = replace(quantized(True, True), profile=load_profile("int4"))
    kept = [outcome for outcome in unanswered.outcomes if outcome.stage == "prefill"]
    written = replace(unanswered, outcomes=kept, planned=1)
    assert written.answers().graph is None and written.answers().cost == Answer(1, 0)
    assert next(answer_lines(written.evidence())).startswith("graph: cannot be told")
