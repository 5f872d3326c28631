"""The parity checks as tests, one for each line of a plan: `test_parity[vision[users-case-16x16-after-24x24]]`.

With --artifact DIR: that artifact, and the matrix its recipe names unless --matrix names another. Without: artifacts of
this project's tiny recipes, built first, with the quick matrix. The plan, the bench and the verdicts are those of
`verify`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .harness.judging.outcome import Outcome
from .harness.plan import Check, carry_out
from .harness.rounds import carry_out_all
from .harness.sides.bench import Bench
from .harness.verify import open_bench
from .plugin import BUILDS, OUTCOME, option_of, plans_of


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each check of each plan; `--dist loadgroup` keeps the checks of a case on one worker."""
    metafunc.parametrize(
        ("recipe_name", "check"),
        [
            pytest.param(name, check, id=id_of(name, check), marks=pytest.mark.xdist_group(group_of(name, check)))
            for name, plan in plans_of(metafunc.config).items()
            for check in plan.checks
        ],
    )


def id_of(recipe_name: str, check: Check) -> str:
    return f"{recipe_name}-{check.id}" if recipe_name else check.id


def group_of(recipe_name: str, check: Check) -> str:
    return f"{recipe_name} {check.case.name if check.case else 'exam'}"


@pytest.fixture(scope="session")
def benches(pytestconfig: pytest.Config) -> Callable[[str], Bench]:
    """Gives the bench of an artifact, by the name of its recipe; "" is the one given by --artifact."""
    opened: dict[str, Bench] = {}
    artifact, precision, matrix = (option_of(pytestconfig, name) for name in ("artifact", "precision", "matrix"))

    def bench_of(name: str) -> Bench:
        if name not in opened and name:
            opened[name] = open_bench(pytestconfig.stash[BUILDS][name](), matrix or "quick")
        elif name not in opened:
            opened[name] = open_bench(artifact, matrix, precision=precision)
        return opened[name]

    return bench_of


@pytest.fixture(scope="session")
def outcome_of(request: pytest.FixtureRequest, benches: Callable[[str], Bench]) -> Callable[[str, Check], Outcome]:
    """Carries out a check of an artifact, by the name of its recipe.

    Where PyTorch is streamed, the first check has all selected ones of the artifact carried out with it, in rounds; a
    worker of pytest-xdist, which does not know the checks that it will get, those of the case.
    """
    known: dict[tuple[str, str], Outcome] = {}
    is_worker = hasattr(request.config, "workerinput")

    def carried_out(name: str, check: Check) -> Outcome:
        bench = benches(name)
        if not bench.reference.streamed:
            return carry_out(bench, check)
        if (name, check.id) not in known:
            checks = [
                other
                for artifact, other in selected_checks(request.session)
                if artifact == name and (not is_worker or group_of(artifact, other) == group_of(name, check))
            ]
            known.update({(name, outcome.id): outcome for outcome in carry_out_all(bench, checks)})
        return known[name, check.id]

    return carried_out


def selected_checks(session: pytest.Session) -> list[tuple[str, Check]]:
    """The checks that this process may be asked for, each with the recipe's name."""
    tests: list[Any] = [test for test in session.items if getattr(test, "function", None) is test_parity]
    return [(test.callspec.params["recipe_name"], test.callspec.params["check"]) for test in tests]


def test_parity(
    recipe_name: str, check: Check, outcome_of: Callable[[str, Check], Outcome], request: pytest.FixtureRequest
) -> None:
    outcome = outcome_of(recipe_name, check)
    request.node.stash[OUTCOME] = outcome
    assert outcome.passed, outcome.message
