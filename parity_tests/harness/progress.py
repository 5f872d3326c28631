"""Shows how far a verification is: the case and stage, or the layer PyTorch is at, and the time left.

A bar on a terminal, a line now and then elsewhere. Knows checks, modules and what was estimated for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from qwen3vl_export.console import console, format_duration, say

from .budget.cost import Seconds
from .budget.estimate import Estimate
from .plan import Check
from .sides.pytorch.streamed_model import HEAD, LAYER

LINE_SECONDS = 15.0  # between two lines where there is no bar
TRUSTED_SECONDS = 10.0  # of work until which the estimate weighs more than the clock

Show = Callable[[str, float, float], None]  # what is done next, the share that was done, the seconds left


class Tracker:
    """Counts the estimated seconds of what was done.

    The time left is the estimate of the rest, scaled by how long what was done took against its estimate. Where PyTorch
    is streamed, checks are carried out in rounds: reached first, a check counts for the artifact, then for comparing;
    PyTorch's seconds count module by module.

    Args:
        done: ids of checks that an earlier run carried out.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        estimate: Estimate,
        show: Show,
        done: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.estimate, self.show, self.clock = estimate, show, clock
        self.started = clock()
        self.checked = {name: estimate.checks[name].total for name in done if name in estimate.checks}
        self.streamed = 0.0  # estimated seconds of PyTorch's passes

    @property
    def done(self) -> float:
        """Estimated seconds of what was done."""
        return min(self.total, sum(self.checked.values()) + self.streamed)

    @property
    def total(self) -> float:
        return self.estimate.seconds.total

    @property
    def seconds_left(self) -> float:
        elapsed = self.clock() - self.started
        return (self.total - self.done) * (elapsed + TRUSTED_SECONDS) / (self.done + TRUSTED_SECONDS)

    def track(self, checks: Sequence[Check]) -> Iterator[Check]:
        """Yields the checks one after another and shows which is carried out."""
        for check in checks:
            self.show(f"{check.name}: {check.stage}", self.done / self.total, self.seconds_left)
            yield check
            expected = self.estimate.checks.get(check.id, Seconds())
            first = self.estimate.streamed and check.id not in self.checked
            streamed = expected.pytorch if self.estimate.streamed else 0.0
            self.checked[check.id] = expected.artifact if first else expected.total - streamed

    def report(self, module: str, calls: int) -> None:
        """Shows the module that PyTorch loads, or the piece of the artifact that is opened, and for how many calls."""
        side = "PyTorch" if module == HEAD or module.startswith("model.") else "artifact"
        self.show(f"{side}: {module}, {calls} calls", self.done / self.total, self.seconds_left)
        model = self.estimate.resources.model
        tower = 4 * model.block_parameters  # patches for each token
        sizes = {"blocks": tower, "layers": model.layer_parameters, HEAD: model.hidden * model.output}
        whole = model.blocks * tower + model.layers * model.layer_parameters + sizes[HEAD]
        kind = module.split(".")[-2] if LAYER.fullmatch(module) else module
        self.streamed += self.estimate.seconds.pytorch / self.estimate.passes * sizes.get(kind, 0) / whole


@contextmanager
def show_progress(estimate: Estimate, done: Iterable[str] = ()) -> Iterator[Tracker]:
    """Inside, what the tracker is told is shown; `done` as for `Tracker`."""
    screen = console()
    if not screen.is_terminal:
        yield Tracker(estimate, Lines(), done)
        return
    columns = (
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[left]} left"),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task("", total=1.0, left="")
        yield Tracker(
            estimate,
            lambda text, share, left: bar.update(task, description=text, completed=share, left=format_duration(left)),
            done,
        )


class Lines:
    """Prints what is done next, every `LINE_SECONDS`.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.printed: float | None = None

    def __call__(self, text: str, share: float, left: float) -> None:
        now = self.clock()
        if self.printed is None or now - self.printed >= LINE_SECONDS:
            self.printed = now
            say(f"{share:.0%}, about {format_duration(left)} left; {text}")
