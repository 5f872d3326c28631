"""Several computations that go through the same steps together: each waits before a step until all have come so far.

So what a step needs is fetched once for all of them. Each computation is a thread, only one of which runs at a time:
nothing of what it does has to know that it is stopped. Knows threads; nothing about models.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


Undo = Callable[[], None]


class Stopped(BaseException):
    """Ends a computation whose neighbour failed."""


class Setting:
    """A change of something that all computations see.

    Args:
        apply: makes the change and returns what undoes it.
    """

    def __init__(self, apply: Callable[[], Undo]) -> None:
        self._apply = apply
        self._undo: Undo

    def enter(self) -> None:
        self._undo = self._apply()

    def leave(self) -> None:
        self._undo()


class Computation(Generic[Result]):
    """One computation, run in a thread of its own until it waits for a step or ends."""

    def __init__(self, compute: Callable[[], Result]) -> None:
        self.step: str | None = None  # that it waits for
        self.result: Result
        self.error: BaseException | None = None
        self.ended = False
        self.stopped = False
        self.settings: list[Setting] = []
        self._compute = compute
        self._go, self._halt = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def proceed(self) -> None:
        """Run until it waits for the next step, or ends."""
        self.step = None
        self._go.release()
        self._halt.acquire()

    def wait_for(self, step: str) -> None:
        """In its own thread: stop before a step until `proceed` is called."""
        self.step = step
        for setting in reversed(self.settings):
            setting.leave()
        self._halt.release()
        self._go.acquire()
        for setting in self.settings:
            setting.enter()
        if self.stopped:
            raise Stopped

    def stop(self) -> None:
        """End it where it waits."""
        if not self.ended:
            self.stopped = True
            self.proceed()

    def _run(self) -> None:
        current.computation = self
        self._go.acquire()
        try:
            if not self.stopped:
                self.result = self._compute()
        except BaseException as error:
            self.error = error
        finally:
            self.ended = True
            self._halt.release()


class _Current(threading.local):
    computation: Computation[Any] | None = None


current = _Current()


def is_in_step() -> bool:
    """Whether this thread is a computation in step with others."""
    return current.computation is not None


def reach(step: str) -> bool:
    """Wait for a step if this thread is a computation in step with others; whether it is."""
    if current.computation is None:
        return False
    current.computation.wait_for(step)
    return True


@contextmanager
def while_running(apply: Callable[[], Undo]) -> Iterator[None]:
    """Inside, a change is in effect while this thread's computation runs, and undone while it waits for a step.

    Args:
        apply: makes the change and returns what undoes it.
    """
    setting, computation = Setting(apply), current.computation
    settings = [] if computation is None else computation.settings
    setting.enter()
    settings.append(setting)
    try:
        yield
    finally:
        settings.remove(setting)
        setting.leave()


def run_in_step(
    computations: Sequence[Callable[[], Result]],
    order: Mapping[str, int],
    prepare: Callable[[str], AbstractContextManager[None]],
    report: Callable[[str, int], None] = lambda step, waiting: None,
) -> list[Result]:
    """The results of computations that call `reach` before each step.

    Args:
        order: of the steps; of those that are waited for, the first is prepared.
        prepare: is entered while the computations that wait for a step run through it to the next.
        report: is told each step, and how many computations run through it.

    Raises:
        BaseException: what the first failing computation raised; the others are stopped.
    """
    running = [Computation(compute) for compute in computations]
    try:
        for computation in running:
            advance(computation)
        while waited := [computation.step for computation in running if computation.step is not None]:
            step = min(waited, key=order.__getitem__)
            group = [computation for computation in running if computation.step == step]
            report(step, len(group))
            with prepare(step):
                for computation in group:
                    advance(computation)
    finally:
        for computation in running:
            computation.stop()
    return [computation.result for computation in running]


def advance(computation: Computation[Any]) -> None:
    computation.proceed()
    if computation.error is not None:
        raise computation.error
