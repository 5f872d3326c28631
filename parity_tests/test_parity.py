"""The parity checks as tests, one for each line of a plan: `test_parity[vision[users-case-16x16-after-24x24]]`.

With --artifact DIR: that artifact, and the matrix its recipe names unless --matrix names another. Without: artifacts of
this project's tiny recipes, built first, with the quick matrix. The plan, the bench and the verdicts are those of
`verify`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .harness.plan import Check, carry_out
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


def test_parity(
    recipe_name: str, check: Check, benches: Callable[[str], Bench], request: pytest.FixtureRequest
) -> None:
    outcome = carry_out(benches(recipe_name), check)
    request.node.stash[OUTCOME] = outcome
    assert outcome.passed, outcome.message
