"""Which task next: the loop that takes tasks through an executor, in the order that ends soonest.

A task starts when all it needs is there and a worker with its memory is free; among those, the one with the longest
chain behind it. What a worker was unable to do goes to another one. Nothing is handed out that could not start at
once, so that a worker that dies or joins changes only what comes next. Knows neither dask nor what tasks do.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..console import format_size
from ..errors import FleetError
from .graph import Task, critical_path
from .tasks import Outcome, Site, perform

TRIES = 3  # workers that may be unable to do a task before it is given up
HERE = "here"

Tell = Callable[..., None]  # (event: str, **values)


class Executor(Protocol):
    """Workers, however they come to be."""

    @property
    def dashboard(self) -> str | None:
        """Address of a page that shows them at work."""
        ...

    def workers(self) -> Mapping[str, int]:
        """Every worker there is now, and the bytes of memory it has for tasks."""
        ...

    def submit(self, task: Task, avoid: frozenset[str]) -> None:
        """Hand a task to a worker that has its memory and is not one of `avoid`."""
        ...

    def ended(self) -> Sequence[Outcome]:
        """Outcomes of submitted tasks, at least one unless time passed without; waits for them.

        Raises:
            FleetStopped: there is nobody left to wait for.
        """
        ...

    def close(self) -> None: ...


@dataclass
class Serial:
    """This process: one task after another."""

    site: Site
    scratch: Path
    memory: int
    submitted: list[Task] = field(default_factory=list)
    dashboard: str | None = None

    def workers(self) -> Mapping[str, int]:
        return {HERE: self.memory}

    def submit(self, task: Task, avoid: frozenset[str]) -> None:
        self.submitted.append(task)

    def ended(self) -> Sequence[Outcome]:
        return [perform(self.submitted.pop(), self.site, self.scratch, HERE)]

    def close(self) -> None:
        pass


class Queue:
    """Tasks that are ready, longest chain first; those that cannot start yet stay in it."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.rank = critical_path(tasks)
        self.waiting = {task.result: {name for name in task.needs if name in self.rank} for task in tasks}
        self.after: defaultdict[str, list[str]] = defaultdict(list)
        for name, needed in self.waiting.items():
            for other in needed:
                self.after[other].append(name)
        self.tasks = {task.result: task for task in tasks}
        self.ready: list[tuple[float, str]] = []
        for name, needed in self.waiting.items():
            if not needed:
                self.add(self.tasks[name])

    def add(self, task: Task) -> None:
        heapq.heappush(self.ready, (-self.rank[task.result], task.result))

    def done(self, result: str) -> None:
        for name in self.after[result]:
            self.waiting[name].discard(result)
            if not self.waiting[name]:
                self.add(self.tasks[name])

    def startable(self, in_flight: Iterable[Task], workers: Mapping[str, int]) -> list[Task]:
        """Takes out what can start beside what is in flight, one task for each free worker that has the memory."""
        running = sorted((task.memory for task in in_flight), reverse=True)
        memory = sorted(workers.values(), reverse=True)
        chosen: list[Task] = []
        passed_over: list[tuple[float, str]] = []
        while self.ready and len(running) < len(memory):
            entry = heapq.heappop(self.ready)
            task = self.tasks[entry[1]]
            beside = sorted([*running, task.memory], reverse=True)
            if all(need <= room for need, room in zip(beside, memory, strict=False)):
                running = beside
                chosen.append(task)
            else:
                passed_over.append(entry)
        for entry in passed_over:
            heapq.heappush(self.ready, entry)
        return chosen


def run_tasks(tasks: Sequence[Task], executor: Executor, tell: Tell, outcomes: dict[str, Outcome]) -> None:
    """Carry out tasks, each after those it needs.

    Args:
        tasks: in an order in which a task stands behind those it needs. What is needed but not listed is there.
        tell: takes every event: task-started, task-ended, task-moved.
        outcomes: gets how each task that was started ended, by its result, as soon as it has.

    Raises:
        FleetStopped: no worker is left; what was finished by then is in the store.
    """
    queue = Queue(tasks)
    in_flight: dict[str, Task] = {}
    avoid: defaultdict[str, set[str]] = defaultdict(set)
    tries: Counter[str] = Counter()
    while queue.ready or in_flight:
        for task in queue.startable(in_flight.values(), executor.workers()):
            in_flight[task.result] = task
            executor.submit(task, frozenset(avoid[task.result]))
            tell("task-started", **about(task))
        for outcome in executor.ended():
            done = in_flight.pop(outcome.result, None)
            if done is None:
                continue  # a second outcome: it ran twice, which changes nothing
            if outcome.status == "unable":
                avoid[done.result].add(outcome.worker)
                tries[done.result] += 1
                others = {name: room for name, room in executor.workers().items() if name not in avoid[done.result]}
                if tries[done.result] < TRIES and any(room >= done.memory for room in others.values()):
                    tell("task-moved", **about(done), worker=outcome.worker, message=outcome.message)
                    queue.add(done)
                    continue
            outcomes[done.result] = outcome
            tell("task-ended", **about(done), **described(outcome))
            if outcome.good:
                queue.done(done.result)


def check_memory(tasks: Iterable[Task], workers: Mapping[str, int]) -> None:
    """Hold every task against the largest worker.

    Raises:
        FleetError: one needs more.
    """
    largest = max(workers.values(), default=0)
    for task in tasks:
        if task.memory > largest:
            raise FleetError(
                f"{task.label}: needs about {format_size(task.memory)} of memory, "
                f"the largest worker has {format_size(largest)}",
                "Leave it out, or start a worker with more: "
                f"dask worker … --resources MEMORY={-(-task.memory // 10**9)}e9",
            )


def about(task: Task) -> dict[str, Any]:
    return {"task": task.result, "kind": task.kind, "recipe": task.job.name}


def described(outcome: Outcome) -> dict[str, Any]:
    """An outcome for the log; what is empty is left out."""
    values = {
        "status": outcome.status,
        "worker": outcome.worker,
        "started": round(outcome.started, 3),
        "seconds": round(outcome.seconds, 3),
        "message": outcome.message,
        "notices": list(outcome.notices),
        "trace": outcome.trace,
        **outcome.figures,
    }
    return {key: value for key, value in values.items() if value not in ("", [])}


def machine_memory() -> int:
    """Bytes of this machine's memory, or what its control group allows."""
    import os

    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if path.is_file() and (text := path.read_text("ascii").strip()).isdigit():
            total = min(total, int(text))
    return total
