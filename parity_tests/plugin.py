"""A pytest plugin: the checks of an artifact as tests, one for each line of its plan.

    pytest --artifact DIR [--precision NAME] [--matrix quick|standard|full] [-n auto --dist loadgroup]

Same plan, bench and verdicts as `verify`; when the whole plan ran, the same evidence is written into the artifact. Ids
read as the matrix: `test_parity[vision[users-case-16x16-after-24x24]]`. Without paths, `--artifact` runs these tests
alone. Works with pytest-xdist; `--dist loadgroup` keeps the checks of a case on one worker.

Nothing heavy is imported before it is needed: every pytest of an environment that has this project loads this module.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qwen3vl_export.contract import TIERS

if TYPE_CHECKING:
    from .harness.judging.outcome import Outcome
    from .harness.plan import Check, Plan
    from .harness.sides.bench import Bench

TESTS = Path(__file__).with_name("test_parity.py")
OUTCOME: pytest.StashKey[Outcome] = pytest.StashKey()
STARTED = pytest.StashKey[float]()
OUTCOMES: pytest.StashKey[list[Outcome]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("parity")
    group.addoption("--artifact", type=Path, help="verify this Qwen3-VL artifact against PyTorch")
    group.addoption("--precision", default="", help="which of its precisions; the default one unless said")
    group.addoption("--matrix", choices=TIERS, help="which cases of the parity matrix; the recipe's choice unless said")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("artifact") is None:
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch loads; see conftest.py
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = [str(TESTS)]


@pytest.fixture(scope="session")
def benches(pytestconfig: pytest.Config) -> Callable[[str], Bench]:
    """The bench of an artifact, by the name of its recipe; "" is the one given by --artifact."""
    from .fixtures.tiny_builds import build_once
    from .harness.verify import open_bench

    opened: dict[str, Bench] = {}

    def get(name: str) -> Bench:
        if name not in opened:
            matrix = matrix_of(pytestconfig, name)
            if name:
                opened[name] = open_bench(build_once(name), matrix)
            else:
                given, precision = (pytestconfig.getoption(option) for option in ("artifact", "precision"))
                opened[name] = open_bench(given, matrix, precision=precision)
        return opened[name]

    return get


@pytest.fixture
def bench(recipe_name: str, benches: Callable[[str], Bench]) -> Bench:
    """The bench a parity test is carried out on."""
    return benches(recipe_name)


def matrix_of(config: pytest.Config, recipe_name: str) -> str | None:
    given: str | None = config.getoption("matrix")
    return given or ("quick" if recipe_name else None)


def plans(config: pytest.Config) -> dict[str, Plan]:
    """The plan of each artifact to verify, from manifests or recipes alone: collecting builds nothing."""
    from qwen3vl_export.recipe import load_recipe

    from .fixtures.paths import ROOT
    from .fixtures.tiny_builds import RECIPES
    from .harness.plan import Subject, plan
    from .harness.verify import opened_unchecked

    path = config.getoption("artifact")
    if path is not None:
        subject = Subject.of_manifest(opened_unchecked(path, precision=config.getoption("precision")).manifest)
        return {"": plan(matrix_of(config, ""), subject)}
    subjects = {name: Subject.of_recipe(load_recipe(ROOT / "recipes" / f"{name}.yaml")) for name in RECIPES}
    return {name: plan(matrix_of(config, name), subject) for name, subject in subjects.items()}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each check of each plan; `--dist loadgroup` keeps the checks of a case on one worker."""
    if {"recipe_name", "check"} <= set(metafunc.fixturenames):
        params = [
            pytest.param(name, check, id=test_id(name, check), marks=pytest.mark.xdist_group(group_of(name, check)))
            for name, planned in plans(metafunc.config).items()
            for check in planned.checks
        ]
        metafunc.parametrize(("recipe_name", "check"), params)


def test_id(recipe_name: str, check: Check) -> str:
    return f"{recipe_name}-{check.id}" if recipe_name else check.id


def group_of(recipe_name: str, check: Check) -> str:
    return f"{recipe_name} {check.case.name if check.case else 'exam'}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[None]:  # the outcome travels with the report, from a worker too
    report = yield
    if call.when == "call" and OUTCOME in item.stash:
        report.parity_outcome = item.stash[OUTCOME].to_json()
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
        from .harness.judging.outcome import Outcome

        if (values := getattr(report, "parity_outcome", None)) is not None:
            self.outcomes.append(Outcome.from_json(values))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes the evidence if an artifact was given and every check of its plan was carried out."""
    config = session.config
    path = config.getoption("artifact")
    if path is None or hasattr(config, "workerinput"):
        return
    from .harness.cases.matrix import load_matrix
    from .harness.verify import opened_unchecked, profile_of, report_of, write_evidence

    planned = plans(config)[""]
    found = {outcome.id: outcome for outcome in config.stash[OUTCOMES]}
    if {check.id for check in planned.checks} != set(found):
        return
    artifact = opened_unchecked(path, precision=config.getoption("precision"))
    seconds = {"total": time.perf_counter() - config.stash[STARTED]}
    outcomes = [found[check.id] for check in planned.checks]
    report = report_of(artifact, profile_of(artifact), planned, outcomes, seconds, load_matrix().seed)
    write_evidence(artifact, report, load_matrix())
