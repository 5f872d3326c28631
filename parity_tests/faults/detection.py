"""Which check finds which planted fault first: the proof that verification can fail, as a table.

Goes through the quick matrix in its order and stops at the first check that fails. Checks that cannot see a fault are
skipped: those that run none of the graphs it is in, and for a fault in the preparation of inputs all later ones, which
give both sides the same inputs. Faults for the comparison with an artifact's dequantized weights are tried on these
checks only.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from qwen3vl_export.errors import ArtifactError, ParityError
from qwen3vl_export.promise import DEQUANTIZED, graphs_run

from ..harness.checks.weights import STAGES
from ..harness.judging.outcome import Outcome
from ..harness.plan import Check, Subject, plan
from ..harness.rounds import carry_out_all
from ..harness.sides.bench import Bench
from ..harness.sides.pytorch.reference import Reference
from ..harness.verify import open_bench
from .catalogue import FAULTS, Fault

MATRIX = "quick"
INPUT_STAGES = ("sampling", "prompt", "preprocess", "positions")


def first_failure(fault: Fault, good: Path, scratch: Path, reference: Reference | None = None) -> Outcome | None:
    """The outcome of the first check of the quick matrix that fails on `good` with the fault in it; None if all pass.

    Args:
        scratch: a directory for the broken copy.
        reference: PyTorch's side, if it is already loaded.
    """
    broken = fault.plant(good, scratch / fault.name)
    try:
        bench = open_bench(broken, MATRIX, reference=reference)
    except ArtifactError as error:
        return Outcome("files", "manifest", 0.0, error=str(error))
    with fault.during(bench):
        return next((outcome for outcome in run_affected_checks(bench, fault) if not outcome.passed), None)


def run_affected_checks(bench: Bench, fault: Fault) -> Iterator[Outcome]:
    for check in plan(MATRIX, Subject.of_artifact(bench.artifact), bench.matrix).checks:
        if can_affect(fault, check):
            yield from carry_out_all(bench, [check])


def can_affect(fault: Fault, check: Check) -> bool:
    if check.stage in STAGES:
        return check.name in (fault.graphs or ())
    if fault.stage.startswith(DEQUANTIZED) != check.stage.startswith(DEQUANTIZED):
        return False
    if fault.stage in INPUT_STAGES:
        return check.stage in INPUT_STAGES
    return fault.graphs is None or bool(fault.graphs & graphs_run(check.stage))


def rows(good: Callable[[str], Path], log: Callable[[str], None] = lambda line: None) -> Iterator[str]:
    """The lines of a Markdown table: each fault, the first check that found it, and what that check said.

    Args:
        good: returns the artifact of a recipe.
        log: is called with a line for each fault.

    Raises:
        ParityError: no check found a fault.
    """
    yield "| fault | first check that finds it | what it says |"
    yield "|---|---|---|"
    references: dict[str, Reference] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for fault in FAULTS:
            artifact = good(fault.recipe)
            if fault.recipe not in references:
                references[fault.recipe] = open_bench(artifact, MATRIX).reference
            failure = first_failure(fault, artifact, Path(scratch), references[fault.recipe])
            if failure is None:
                raise ParityError(f"{fault.name}: the quick matrix does not find it", "Add a case that does")
            log(f"{fault.name}: {failure.message}")
            yield row(fault, failure)


def row(fault: Fault, failure: Outcome) -> str:
    return f"| {fault.name} | `{failure.id}` | {summary(failure)} |"


def summary(failure: Outcome) -> str:
    """The diagnosis if there is one, else the measures that failed; without numbers, which differ between machines."""
    if failure.diagnosis:
        return failure.diagnosis
    if failure.error:
        return failure.error.split(": ", 1)[-1].split(". ")[0]
    return ", ".join(verdict.measure for verdict in failure.verdicts if not verdict.passed)
