"""Scheduling: runs tasks on an executor, in the order that ends soonest.

A task starts when its inputs exist and a worker with enough memory is free; of several, the one with the longest chain
of tasks after it. A task that one worker is unable to do goes to another. Only tasks that can start at once are
submitted, so that a worker that dies or joins affects later tasks only. Knows neither dask nor what tasks do.
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
from .tasks import Site, TaskOutcome, perform

TRIES = 3  # workers that are unable to do a task before it fails
THIS_PROCESS = "here"  # its name as a worker

Emit = Callable[..., None]  # (event: str, **values)


class Executor(Protocol):
    """The interface of workers."""

    @property
    def dashboard(self) -> str | None:
        """Address of a page that shows the workers."""
        ...

    def workers(self) -> Mapping[str, int]:
        """Every current worker, and the bytes of memory it has for tasks."""
        ...

    def submit(self, task: Task, avoid: frozenset[str]) -> None:
        """Give a task to a worker with enough memory that is not one of `avoid`."""
        ...

    def ended(self) -> Sequence[TaskOutcome]:
        """Wait for outcomes of submitted tasks; empty if none ended within the executor's waiting time.

        Raises:
            FleetStopped: no worker is left.
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
        return {THIS_PROCESS: self.memory}

    def submit(self, task: Task, avoid: frozenset[str]) -> None:
        self.submitted.append(task)

    def ended(self) -> Sequence[TaskOutcome]:
        return [perform(self.submitted.pop(), self.site, self.scratch, THIS_PROCESS)]

    def close(self) -> None:
        pass


class Queue:
    """Tasks that are ready to start, longest chain first, and those that wait for others."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.rank = critical_path(tasks)
        self.waiting = {task.result: {name for name in task.needs if name in self.rank} for task in tasks}
        self.after: defaultdict[str, list[str]] = defaultdict(list)
        for name, needed in self.waiting.items():
            for result in needed:
                self.after[result].append(name)
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

    def take_startable(self, in_flight: Iterable[Task], workers: Mapping[str, int]) -> list[Task]:
        """Remove and return the tasks that can start now, one for each free worker with enough memory."""
        running = sorted((task.memory for task in in_flight), reverse=True)
        memory = sorted(workers.values(), reverse=True)
        chosen: list[Task] = []
        skipped: list[tuple[float, str]] = []
        while self.ready and len(running) < len(memory):
            entry = heapq.heappop(self.ready)
            task = self.tasks[entry[1]]
            together = sorted([*running, task.memory], reverse=True)
            if all(need <= room for need, room in zip(together, memory, strict=False)):
                running = together
                chosen.append(task)
            else:
                skipped.append(entry)
        for entry in skipped:
            heapq.heappush(self.ready, entry)
        return chosen


def run_tasks(tasks: Sequence[Task], executor: Executor, emit: Emit, outcomes: dict[str, TaskOutcome]) -> None:
    """Run tasks, each after those it needs.

    Args:
        tasks: every task after those it needs. Needed results that are not among them exist already.
        emit: takes every event: task-started, task-ended, task-moved.
        outcomes: receives the outcome of each task by its result, as soon as it ends.

    Raises:
        FleetStopped: no worker is left; finished results are in the store.
    """
    queue = Queue(tasks)
    in_flight: dict[str, Task] = {}
    avoid: defaultdict[str, set[str]] = defaultdict(set)
    tries: Counter[str] = Counter()
    while queue.ready or in_flight:
        for task in queue.take_startable(in_flight.values(), executor.workers()):
            in_flight[task.result] = task
            executor.submit(task, frozenset(avoid[task.result]))
            emit("task-started", **fields_of(task))
        for outcome in executor.ended():
            ended = in_flight.pop(outcome.result, None)
            if ended is None:
                continue  # the second outcome of a task that ran twice
            if outcome.status == "unable":
                avoid[ended.result].add(outcome.worker)
                tries[ended.result] += 1
                candidates = {
                    name: room for name, room in executor.workers().items() if name not in avoid[ended.result]
                }
                if tries[ended.result] < TRIES and any(room >= ended.memory for room in candidates.values()):
                    emit("task-moved", **fields_of(ended), worker=outcome.worker, message=outcome.message)
                    queue.add(ended)
                    continue
            outcomes[ended.result] = outcome
            emit("task-ended", **fields_of(ended), **fields_of_outcome(outcome))
            if outcome.succeeded:
                queue.done(ended.result)


def check_memory(tasks: Iterable[Task], workers: Mapping[str, int]) -> None:
    """Check every task against the largest worker.

    Raises:
        FleetError: a task needs more memory than it has.
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


def fields_of(task: Task) -> dict[str, Any]:
    return {"task": task.result, "kind": task.kind, "recipe": task.job.name}


def fields_of_outcome(outcome: TaskOutcome) -> dict[str, Any]:
    """The fields of an outcome in an event; omits empty ones."""
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
    """Bytes of this machine's memory, or of its control group's limit if that is less."""
    import os

    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if path.is_file() and (text := path.read_text("ascii").strip()).isdigit():
            total = min(total, int(text))
    return total
