"""Carries out checks in rounds, so that the two sides are never in memory together where PyTorch's is streamed.

A round carries out every check as far as the results of PyTorch that are there allow. Then the artifact's sessions are
closed, PyTorch computes in one pass over the checkpoint all that was asked for, and the next round begins. Where
PyTorch's model is in memory as a whole nothing is deferred, and one round is all. Cases whose results do not fit on the
disk together go through the rounds one group after another. Knows nothing about what is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from .budget.machine import free_disk
from .budget.split import split_in_order
from .judging.outcome import Outcome
from .plan import Check, carry_out
from .sides.bench import Bench
from .sides.pytorch.results import Deferred

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
    groups = groups_on_disk(bench, checks)
    for group in groups:
        while waiting := [check for check in group if check.id not in outcomes]:
            for check in track(waiting):
                try:
                    outcomes[check.id] = carry_out(bench, check)
                except Deferred:
                    continue
                record(outcomes[check.id])
            bench.settle(report)
        if len(groups) > 1:
            bench.results.clear()
    return [outcomes[check.id] for check in checks]


def groups_on_disk(bench: Bench, checks: Sequence[Check]) -> list[Sequence[Check]]:
    """The checks in groups whose results fit on the disk together; all of them where none has to wait there."""
    resources = bench.resources
    if resources is None or not bench.reference.streamed:
        return [checks]
    free = free_disk(resources.results)

    def fit(group: Sequence[Check]) -> bool:
        return resources.fit_on_disk({name for check in group for name in check.asks}, free)

    return [*split_in_order(checks, fit)]
