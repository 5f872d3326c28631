"""A pytest plugin: the checks of an artifact as tests, one for each line of its plan.

    pytest --artifact DIR [--precision NAME] [--matrix quick|release|standard|full] [-n auto --dist loadgroup]

Plan, bench and verdicts are those of `verify`; when the whole plan ran, the same evidence is written into the artifact.
Test ids read as the matrix: `test_parity[vision[users-case-16x16-after-24x24]]`. Given no paths, pytest runs
these tests alone. Works with pytest-xdist; `--dist loadgroup` keeps the checks of a case on one worker.

Every pytest of an environment that has this project loads this module. So it imports nothing heavy; its options are
named `--qwen3vl-…`, and have the short names above only where no other plugin or conftest.py uses them; without an
artifact its hooks do nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from qwen3vl_export.contract import TIERS

if TYPE_CHECKING:
    from .harness.judging.outcome import Outcome
    from .harness.plan import Plan

TESTS = Path(__file__).with_name("test_parity.py")
GROUP = "qwen3vl-export"
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "artifact": {"type": Path, "help": "verify this Qwen3-VL artifact against PyTorch"},
    "precision": {"default": "", "help": "which precision of the artifact (default: its default one)"},
    "matrix": {"choices": TIERS, "help": "which tier of the parity matrix (default: the one its recipe names)"},
}
ATTRIBUTE = "parity_outcome"  # of a test report
OUTCOME: pytest.StashKey[Outcome] = pytest.StashKey()  # of a test: what its check found
OUTCOMES: pytest.StashKey[list[Outcome]] = pytest.StashKey()  # of a session
STARTED = pytest.StashKey[float]()
BUILDS: pytest.StashKey[Mapping[str, Callable[[], Path]]] = pytest.StashKey()
"""Recipes that are built and verified where no artifact is given, by name. This project's own conftest.py sets it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    for name, settings in OPTIONS.items():
        parser.getgroup(GROUP).addoption(f"--qwen3vl-{name}", dest=f"qwen3vl_{name}", **settings)


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(parser: pytest.Parser) -> Iterator[None]:
    """Add the short names of the options, once everybody else has named theirs."""
    yield
    for name, settings in OPTIONS.items():
        if is_free(parser, f"--{name}"):
            parser.getgroup(GROUP).addoption(f"--{name}", dest=f"qwen3vl_{name}", **settings)


def is_free(parser: pytest.Parser, option: str) -> bool:
    """Whether no plugin or conftest.py has an option of that name."""
    try:
        return f"{option}=" in parser.parse_known_and_unknown_args([f"{option}="])[1]
    except pytest.UsageError:  # it has, and cannot be empty
        return False


def option_of(config: pytest.Config, name: str) -> Any:
    """The value of one of `OPTIONS`, whichever of its names it was given by."""
    return config.getoption(f"qwen3vl_{name}")


def pytest_configure(config: pytest.Config) -> None:
    if option_of(config, "artifact") is None:
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch loads; see conftest.py
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = [str(TESTS)]


def plans_of(config: pytest.Config) -> dict[str, Plan]:
    """The plan of the artifact given, under "", else those of `BUILDS` with the quick matrix, by name of their recipe.

    They follow from manifests and recipes alone: collecting tests builds nothing.
    """
    from qwen3vl_export.recipe import load_recipe

    from .harness.plan import Subject, plan
    from .harness.verify import open_unchecked

    artifact, precision, matrix = (option_of(config, name) for name in OPTIONS)
    if artifact is not None:
        subject = Subject.of_artifact(open_unchecked(artifact, precision=precision))
        return {"": plan(matrix, subject)}
    return {
        name: plan(matrix or TIERS[0], Subject.of_recipe(load_recipe(name))) for name in config.stash.get(BUILDS, {})
    }


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach the outcome to the report, which travels from a worker to the process that writes the evidence."""
    report = yield
    if call.when == "call" and OUTCOME in item.stash:
        setattr(report, ATTRIBUTE, item.stash[OUTCOME].to_json())
    return report


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[STARTED] = time.perf_counter()
    session.config.stash[OUTCOMES] = []
    session.config.pluginmanager.register(Collector(session.config.stash[OUTCOMES]))


class Collector:
    """Gathers the outcomes of this process's or its workers' tests."""

    def __init__(self, outcomes: list[Outcome]) -> None:
        self.outcomes = outcomes

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if (values := getattr(report, ATTRIBUTE, None)) is not None:
            from .harness.judging.outcome import Outcome

            self.outcomes.append(Outcome.from_json(values))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the evidence if an artifact was given and every check of its plan was carried out."""
    config = session.config
    path = option_of(config, "artifact")
    if path is None or hasattr(config, "workerinput"):
        return
    from .harness.verify import matrix_for, open_unchecked, profile_of, report_of, write_evidence

    plan = plans_of(config)[""]
    outcomes = {outcome.id: outcome for outcome in config.stash[OUTCOMES]}
    if {check.id for check in plan.checks} != set(outcomes):
        return
    artifact = open_unchecked(path, precision=option_of(config, "precision"))
    seconds = {"total": time.perf_counter() - config.stash[STARTED]}
    in_order = [outcomes[check.id] for check in plan.checks]
    matrix = matrix_for(artifact)
    report = report_of(artifact, profile_of(artifact), plan, in_order, seconds, matrix.seed)
    write_evidence(artifact, report, matrix)
