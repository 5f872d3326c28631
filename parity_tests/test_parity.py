"""The parity checks as tests, one for each line of a plan: `test_parity[vision[users-case-16x16-after-24x24]]`.

With --artifact DIR: that artifact, the matrix its recipe names unless --matrix says another. Without: freshly built
tiny artifacts with the quick matrix. Same plan, same bench and same verdicts as `verify`.
"""

from __future__ import annotations

import pytest

from .harness.plan import Check, carry_out
from .harness.sides.bench import Bench
from .plugin import OUTCOME


def test_parity(check: Check, bench: Bench, request: pytest.FixtureRequest) -> None:
    outcome = carry_out(bench, check)
    request.node.stash[OUTCOME] = outcome
    assert outcome.passed, outcome.message
