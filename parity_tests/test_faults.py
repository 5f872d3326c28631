"""Every planted fault must be found, by the right check, with a message that names the right area."""

from __future__ import annotations

from pathlib import Path

import pytest

from .bench import Bench
from .faults import FAULTS, Fault
from .harness import open_bench, run
from .outcome import Outcome
from .reference import Reference

# Two of `quick` are enough to find each. One is not: 16x16 is the size of tiny's position table, where interpolation
# has nothing to do, so that the user's own case cannot tell one interpolation from another.
CASES = ("users-case-16x16-after-24x24", "two-images-of-different-size")


@pytest.fixture(scope="session")
def reference(tiny_artifact: Path) -> Reference:
    """PyTorch's side, which no fault touches."""
    return open_bench(tiny_artifact, "quick").reference


def failing(bench: Bench, reference: Reference) -> list[Outcome]:
    vars(bench)["reference"] = reference
    report = run(bench, "quick", only=lambda check: check.case is not None and check.name in CASES)
    assert report.planned
    return report.failures


def test_the_good_artifact_passes(tiny_artifact: Path, reference: Reference) -> None:
    assert failing(open_bench(tiny_artifact, "quick"), reference) == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_found(fault: Fault, tiny_artifact: Path, tmp_path: Path, reference: Reference) -> None:
    bench = open_bench(fault.plant(tiny_artifact, tmp_path / "faulty"), "quick")  # every file is as its manifest says
    found = failing(bench, reference)
    assert found, f"{fault.name} was not noticed"
    assert found[0].stage == fault.stage, found[0].message
    assert fault.says in found[0].message
