"""Every planted fault must be found by the quick matrix, by the right check, with a message that names the right area.

The table in docs/parity.md says which check that is; it is held against what happens here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from qwen3vl_export.contract import DECODER, TEXT
from qwen3vl_export.evidence import Rule
from qwen3vl_export.promise import DEQUANTIZED, ROUNDED, head_of
from qwen3vl_export.recipe import load_recipe

from ...faults.catalogue import FAULTS, Fault
from ...faults.detection import first_failure, row, run_affected_checks
from ...faults.forms import INT8_DYNAMIC, LEVEL_4, Form
from ...fixtures.paths import DOCS
from ...harness.checks.weights import STAGES
from ...harness.diagnosis import diagnose
from ...harness.plan import Subject, carry_out, plan
from ...harness.sides.pytorch.reference import Reference
from ...harness.verify import open_bench

CASE = "minimum-64x64"
DOCUMENT = DOCS / "parity.md"


@pytest.fixture(scope="session")
def reference(reference_of: Callable[[str], Reference]) -> Reference:
    """PyTorch's side, which no fault touches; every tiny recipe has the same checkpoint."""
    return reference_of("tiny")


@pytest.fixture(scope="session")
def reference_of(built: Callable[[str], Path]) -> Callable[[str], Reference]:
    """PyTorch's side of a recipe; recipes whose models have the same head share it."""

    @cache
    def of_head(head: str, recipe: str) -> Reference:
        return open_bench(built(recipe), "quick").reference

    def of_recipe(recipe: str) -> Reference:
        head = head_of(load_recipe(recipe).to_json_dict())
        return of_head(head, recipe if head != TEXT else "tiny")

    return of_recipe


@pytest.fixture(scope="session")
def table() -> list[str]:
    text = DOCUMENT.read_text("utf-8")
    lines = text[text.index("<!-- faults -->") : text.index("<!-- /faults -->")].splitlines()
    return [line for line in lines if line.startswith("| ")][1:]


def test_the_good_artifact_passes(tiny_artifact: Path, reference: Reference) -> None:
    bench = open_bench(tiny_artifact, "quick", reference=reference)
    nothing = Fault("nothing", stage="vision", says="")
    assert [outcome.message for outcome in run_affected_checks(bench, nothing) if not outcome.passed] == []


@pytest.mark.parametrize("form", [LEVEL_4, INT8_DYNAMIC], ids=lambda form: form.name)
def test_a_good_artifact_that_rounds_activations_passes(
    form: Form, built: Callable[[str], Path], tmp_path: Path, reference: Reference
) -> None:
    good = Fault("nothing", f"{DEQUANTIZED}decoder", "", graphs=frozenset({DECODER}), form=form)
    recipe = "tiny-int4" if form is LEVEL_4 else "tiny"
    bench = open_bench(good.plant(built(recipe), tmp_path / "good"), "quick", reference=reference)
    stages = (*(f"{DEQUANTIZED}{stage}" for stage in ("decoder", "decode", "chunked")), f"{ROUNDED}decoder")
    checks = [
        check
        for check in plan("quick", Subject.of_manifest(bench.artifact.manifest)).checks
        if check.name == CASE and check.stage in stages
    ]
    outcomes = [carry_out(bench, check) for check in checks]
    assert [outcome.message for outcome in outcomes if not outcome.passed] == [] and len(outcomes) == 4
    assert (outcomes[-1].measures["scaled_max_abs"] or 0) > 1e-3


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_found(
    fault: Fault,
    built: Callable[[str], Path],
    tmp_path: Path,
    reference_of: Callable[[str], Reference],
    table: list[str],
) -> None:
    failure = first_failure(fault, built(fault.recipe), tmp_path, reference_of(fault.recipe))
    assert failure is not None, f"{fault.name} was not noticed"
    assert failure.stage == fault.stage, failure.message
    assert fault.says in failure.message
    assert row(fault, failure) in table, "run scripts/update_detection.py"


def test_good_quantized_weights_pass(built: Callable[[str], Path], reference: Reference) -> None:
    bench = open_bench(built("tiny-int4"), "quick", reference=reference)
    checks = [check for check in plan("quick", Subject.of_artifact(bench.artifact)).checks if check.stage in STAGES]
    assert {check.name for check in checks} == {"vision_encoder", "embeddings", "decoder_model_merged"}
    assert [outcome.message for check in checks if not (outcome := carry_out(bench, check)).passed] == []


def test_what_rounding_costs_is_not_diagnosed_as_a_mistake(
    built: Callable[[str], Path], reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the graph is right is asked of its own weights, and there a failure is diagnosed."""
    bench = open_bench(built("tiny-int4"), "quick", reference=reference, cases=["text-only"])
    stages = ("decoder", f"{DEQUANTIZED}decoder")
    never = Rule("max_abs", "max", 0.0, "no distance at all", "a test")
    bench.profile = replace(bench.profile, rules=bench.profile.rules | dict.fromkeys(stages, (never,)))
    monkeypatch.setattr(diagnose, "closest", lambda *_: "a mistake")
    checks = plan("quick", Subject.of_artifact(bench.artifact), only=["text-only"]).checks
    outcomes = {check.stage: carry_out(bench, check) for check in checks if check.stage in stages}
    assert [outcomes[stage].passed for stage in stages] == [False, False]
    assert [outcomes[stage].diagnosis for stage in stages] == [None, "a mistake"]


def test_the_table_lists_every_fault(table: list[str]) -> None:
    assert [line.split(" | ")[0].removeprefix("| ") for line in table] == [fault.name for fault in FAULTS]
