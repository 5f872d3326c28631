"""Carries out checks in rounds, so that the two sides are never in memory together where PyTorch's is streamed.

A round carries out every check as far as the results of PyTorch that are there allow. Then the artifact's sessions are
closed, PyTorch computes in one pass over the checkpoint all that was asked for, and the next round begins. Where
PyTorch's model is in memory as a whole nothing is deferred, and one round is all. Knows nothing about what is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from .judging.outcome import Outcome
from .plan import Check, carry_out
from .sides.bench import Bench
from .sides.reference import Deferred

Track = Callable[[Sequence[Check]], Iterable[Check]]
ReportModule = Callable[[str, int], None]


def carry_out_all(
    bench: Bench,
    checks: Sequence[Check],
    track: Track = iter,
    report: ReportModule = lambda *_: None,
    done: Mapping[str, Outcome] = MappingProxyType({}),
    record: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """The outcome of each check.

    Args:
        track: wraps the checks of a round to show progress.
        report: is told each module that PyTorch loads, and for how many results.
        done: outcomes that there are already, by the id of the check.
        record: is told each new outcome.
    """
    outcomes = dict(done)
    while waiting := [check for check in checks if check.id not in outcomes]:
        for check in track(waiting):
            try:
                outcomes[check.id] = carry_out(bench, check)
            except Deferred:
                continue
            record(outcomes[check.id])
        bench.settle(report)
    return [outcomes[check.id] for check in checks]
