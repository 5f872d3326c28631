"""The status of a fleet: what is built, verified and published, what failed, and the command that makes the rest.

Reads the store only, so it does not matter which machines did the work. Knows names and counts; carries nothing out.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..artifact import SUMMARY
from ..console import console, say, table
from ..errors import FleetError
from ..evidence import Summary
from ..json_form import from_json
from .estimate import Estimate
from .graph import LAST, Job, Kind, Task, estimate_task, tasks_of
from .runner import Emit
from .store import Store
from .tasks import TaskOutcome

FAILURES = "failures"


@dataclass(frozen=True)
class JobStatus:
    """The results of one job.

    Attributes:
        estimate: None before the job is estimated; its tasks are unknown until then.
        missing: tasks whose results are not in the store.
        summary: of its verification, if that is complete.
        failures: messages of missing tasks whose last attempt failed.
    """

    job: Job
    estimate: Estimate | None
    tasks: Sequence[Task]
    missing: Sequence[Task]
    summary: Summary | None = None
    failures: Sequence[str] = field(default=())

    @property
    def passed(self) -> bool:
        """Whether no result is missing and every check passed."""
        return not self.missing and self.summary is not None and self.summary.passed

    @property
    def verdict(self) -> str:
        if self.summary is None:
            return "not verified"
        planned, failed = self.summary.planned, self.summary.failed
        passed = f"passed: {planned} of {planned} checks"
        return passed if self.summary.passed else f"FAILED: {failed} of {planned} checks failed"


def statuses_of(jobs: Iterable[Job], store: Store) -> list[JobStatus]:
    """The status of each job."""
    index = StoreIndex(store)
    return [status_of(job, store, index) for job in jobs]


def status_of(job: Job, store: Store, index: StoreIndex) -> JobStatus:
    first = estimate_task(job)
    if not index.has(first):
        return JobStatus(job, None, [first], [first], failures=index.failures([first]))
    estimate = Estimate.from_json(store.read(job.estimate))
    tasks = tasks_of(job, estimate)
    verified = any(task.kind == "merge" and index.has(task) for task in tasks)
    # Only the report needs the parts: once it is complete, they are not missing.
    missing = [task for task in tasks if not (task.kind == "verify" and verified) and not index.has(task)]
    summary = read_summary(store, job.report) if verified else None
    return JobStatus(job, estimate, tasks, missing, summary, index.failures(missing))


def read_summary(store: Store, report: str) -> Summary:
    """The summary of a report in the store.

    Raises:
        FleetError: it is missing or cannot be read.
    """
    name = f"{report}/{SUMMARY}"
    try:
        return from_json(Summary, store.read(name))
    except ValueError as error:
        raise FleetError(f"{store.url}: {name} cannot be read ({error})", "Remove it and run the fleet again") from None


class StoreIndex:
    """Which results are in the store; lists each folder once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.folders: dict[str, frozenset[str]] = {}

    def has(self, task: Task) -> bool:
        folder, _, name = task.result.partition("/")
        if name not in self._names(folder):
            return False
        return task.kind not in LAST or self.store.has(task.proof)

    def failures(self, tasks: Sequence[Task]) -> list[str]:
        """The messages of tasks whose last attempt failed."""
        recorded = self._names(FAILURES)
        names = {task.label: failure_name(task) for task in tasks}
        return [
            f"{label}: {json.loads(self.store.read(name))['message']}"
            for label, name in names.items()
            if name.partition("/")[2] in recorded
        ]

    def _names(self, folder: str) -> frozenset[str]:
        if folder not in self.folders:
            self.folders[folder] = frozenset(self.store.names(folder))
        return self.folders[folder]


def failure_name(task: Task) -> str:
    return f"{FAILURES}/{task.result.replace('/', '-').removesuffix('.json')}.json"


def store_failures(tasks: Sequence[Task], outcomes: Mapping[str, TaskOutcome], store: Store) -> None:
    """Store why tasks failed, for a later `fleet status`."""
    for task in tasks:
        outcome = outcomes.get(task.result)
        if outcome is not None and not outcome.succeeded:
            values = {"task": task.result, "message": outcome.message, "worker": outcome.worker, "trace": outcome.trace}
            store.replace(failure_name(task), (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())


def show(statuses: Sequence[JobStatus], command: Sequence[str]) -> None:
    """A line for each job, what failed, and how to rerun only that.

    Args:
        command: the command as it was given; `{recipes}` stands for its recipes.
    """
    rows = [
        (
            status.job.name,
            is_done(status, "build"),
            shards_done(status),
            status.job.matrix,
            status.verdict,
            is_done(status, "publish"),
        )
        for status in statuses
    ]
    console().print(table("", ("recipe", "built", "shards", "matrix", "verdict", "published"), rows, wrap="verdict"))
    for failure in (failure for status in statuses for failure in status.failures):
        say(f"failed: {failure}")
    unfinished = [status.job.argument for status in statuses if status.missing]
    failed = [status.job.name for status in statuses if status.summary is not None and not status.summary.passed]
    if failed:
        say(f"{len(failed)} did not pass: {', '.join(failed)}; see zoo.html for their reports")
    if unfinished:
        say(f"{len(unfinished)} of {len(statuses)} not finished. What is there is not made again; make the rest:")
        say(" ".join(shlex.quote(word) for part in command for word in (unfinished if part == "{recipes}" else [part])))
    elif not failed:
        say(f"all {len(statuses)} built, verified and passed")


def is_done(status: JobStatus, kind: Kind) -> str:
    """`yes` or `no` for the only task of a kind; empty if there is none."""
    if not any(task.kind == kind for task in status.tasks):
        return ""
    return "no" if any(task.kind == kind for task in status.missing) else "yes"


def shards_done(status: JobStatus) -> str:
    """`3 of 4`."""
    missing, total = (sum(task.kind == "verify" for task in tasks) for tasks in (status.missing, status.tasks))
    return f"{total - missing} of {total}" if total else ""


def emit_end(emit: Emit, statuses: Sequence[JobStatus], seconds: float) -> None:
    """Emit the event `run-ended`."""
    missing = [task.result for status in statuses for task in status.missing]
    verdicts = {status.job.name: status.verdict for status in statuses}
    emit("run-ended", seconds=round(seconds, 2), missing=missing, verdicts=verdicts)
