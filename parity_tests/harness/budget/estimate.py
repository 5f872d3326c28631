"""The estimate of a verification: the seconds of its checks, the memory of each side, the disk for results.

Facts (the sizes of checkpoint, artifact and cases), and a measurement of this machine that takes a few seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from qwen3vl_export.exporter.checkpoint.files import weight_files
from qwen3vl_export.promise import DEQUANTIZED

from ..plan import Plan, Subject
from ..sides.bench import Bench
from ..sides.pytorch.reference import threads_for
from .activations import FLOAT32, held_of, need_of
from .cost import CostModel, Seconds
from .cut import within_time
from .machine import free_memory
from .memory import weights_of
from .rates import Rates, measure_rates
from .resources import Resources
from .split import split_in_order, within

OPENING = 2.0  # seconds until the first check, whatever is checked
CONVERT = 5e-10  # seconds to write a byte of float32 weights into new memory


@dataclass(frozen=True)
class Estimate:
    """What carrying out a plan takes.

    Attributes:
        checks: seconds of each check, by its id.
        fixed: seconds of reading checkpoint and artifact, and of opening them.
        passes: over the checkpoint; 1 where PyTorch's model is in memory as a whole.
        disk: bytes of results on disk; where they do not fit together, cases go one group after another.
    """

    planned: Plan
    checks: Mapping[str, Seconds]
    fixed: Seconds
    passes: int
    streamed: bool
    disk: int
    resources: Resources
    rates: Rates

    def within(self, seconds: float, subject: Subject) -> Estimate:
        """Without the cases that a budget of time has no room for.

        Raises:
            ParityError: as `within_time`.
        """
        each = {name: check.total for name, check in self.checks.items()}
        return replace(self, planned=within_time(self.planned, subject, each, self.fixed.total, seconds))

    @cached_property
    def seconds(self) -> Seconds:
        """Of everything."""
        return sum((self.checks[check.id] for check in self.planned.checks), self.fixed)


def estimate(bench: Bench, planned: Plan, resources: Resources) -> Estimate:
    """The estimate of a plan on this machine."""
    model, reference = resources.model, bench.reference
    rates = measure_rates(bench.artifact, bench.checkpoint, model, threads_for(resources.needs.weights // FLOAT32))
    costs = CostModel(model, rates, reference.streamed)
    names = list(dict.fromkeys(name for check in planned.checks for name in check.asks))
    passes = 1
    if reference.streamed:
        held = sorted(need_of(model, resources.cases[name].joined).held for name in names)
        passes = 1
        if sum(held) > resources.room(largest=True):
            passes += len(split_in_order(held[:-1], lambda group: sum(group) <= resources.room(largest=False)))
    if any(check.stage.startswith(DEQUANTIZED) for check in planned.checks):
        passes *= 2
    stored = sum(file.stat().st_size for file in weight_files(bench.checkpoint))
    reading = passes * (rates.read * stored + CONVERT * resources.needs.weights)
    opening = seconds_of_opening(
        rates, weights_of(bench.artifact), 1 + reference.streamed, opened_again(resources, names)
    )
    return Estimate(
        planned=planned,
        checks={check.id: costs.of(check, resources.cases) for check in planned.checks},
        fixed=Seconds(opening, reading, OPENING),
        passes=passes,
        streamed=reference.streamed,
        disk=resources.results_of(names) if reference.streamed else 0,
        resources=resources,
        rates=rates,
    )


def seconds_of_opening(rates: Rates, weights: int, times: int, again: int) -> float:
    """Of opening all graphs several times, and so many bytes of their pieces again.

    Pieces that are opened again are in the system's cache of files, if free memory holds the artifact.
    """
    read = times * weights + (again if weights > free_memory() else 0)
    return rates.read * read + CONVERT * (times * weights + again)


def opened_again(resources: Resources, names: Collection[str]) -> int:
    """Bytes of pieces that do not stay open from token to token: at each token of each group of cases."""
    budget = resources.piece()
    if budget is None:
        return 0
    cases = [resources.cases[name] for name in names]
    groups = within(((case.new, held_of(resources.model, case)) for case in cases), resources.held())
    return sum(map(max, groups)) * max(0, resources.needs.decoding - budget)
