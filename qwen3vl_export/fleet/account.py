"""What a store holds of a fleet: what is built, verified and published, what failed, and the command that goes on.

Reads the store only, so that it is true whoever did the work. Knows names and counts; carries nothing out.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..artifact import SUMMARY
from ..console import console, say, table
from .estimate import Estimate
from .graph import LAST, Job, Kind, Task, estimate_task, tasks_of
from .runner import Tell
from .store import Store
from .tasks import Outcome

FAILURES = "failures"


@dataclass(frozen=True)
class Standing:
    """One job's results.

    Attributes:
        estimate: None if it was never estimated; the tasks are unknown then.
        missing: tasks whose results are not there.
        summary: of its verification, if that is there.
        failures: messages of missing tasks that failed when last tried.
    """

    job: Job
    estimate: Estimate | None
    tasks: Sequence[Task]
    missing: Sequence[Task]
    summary: Mapping[str, Any] | None = None
    failures: Sequence[str] = field(default=())

    @property
    def passed(self) -> bool:
        """Whether everything is there and every check passed."""
        return not self.missing and self.summary is not None and self.summary["passed"] is True

    @property
    def verdict(self) -> str:
        if self.summary is None:
            return "not verified"
        good = self.summary["planned"] - self.summary["failed"]
        return f"{'passed' if self.summary['passed'] else 'FAILED'}: {good} of {self.summary['planned']} checks"


def standings(jobs: Iterable[Job], store: Store) -> list[Standing]:
    """How far each job is."""
    listed = Listed(store)
    return [standing(job, store, listed) for job in jobs]


def standing(job: Job, store: Store, listed: Listed) -> Standing:
    first = estimate_task(job)
    if not listed.has(first):
        return Standing(job, None, [first], [first], failures=listed.failures([first]))
    estimate = Estimate.from_json(store.read(job.estimate))
    tasks = tasks_of(job, estimate)
    verified = any(task.kind == "merge" and listed.has(task) for task in tasks)
    # Parts are needed for the report alone, and are not looked for once that is there.
    missing = [task for task in tasks if not (task.kind == "verify" and verified) and not listed.has(task)]
    summary = json.loads(store.read(f"{job.report}/{SUMMARY}")) if verified else None
    return Standing(job, estimate, tasks, missing, summary, listed.failures(missing))


class Listed:
    """Which results are there, each folder of the store listed once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.folders: dict[str, frozenset[str]] = {}

    def has(self, task: Task) -> bool:
        folder, _, name = task.result.partition("/")
        if name not in self._names(folder):
            return False
        return task.kind not in LAST or self.store.has(task.proof)

    def failures(self, tasks: Sequence[Task]) -> list[str]:
        """What tasks ended with when they were last tried."""
        known = self._names(FAILURES)
        notes = [(task, failure_name(task)) for task in tasks]
        found = []
        for task, name in notes:
            if name.partition("/")[2] in known:
                found.append(f"{task.label}: {json.loads(self.store.read(name))['message']}")
        return found

    def _names(self, folder: str) -> frozenset[str]:
        if folder not in self.folders:
            self.folders[folder] = frozenset(self.store.names(folder))
        return self.folders[folder]


def failure_name(task: Task) -> str:
    return f"{FAILURES}/{task.result.replace('/', '-').removesuffix('.json')}.json"


def note_failures(tasks: Sequence[Task], outcomes: Mapping[str, Outcome], store: Store) -> None:
    """Keep why tasks failed, for whoever asks later."""
    for task in tasks:
        outcome = outcomes.get(task.result)
        if outcome is not None and not outcome.good:
            values = {"task": task.result, "message": outcome.message, "worker": outcome.worker, "trace": outcome.trace}
            store.replace(failure_name(task), (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())


def show(found: Sequence[Standing], again: Sequence[str]) -> None:
    """A line for each job, what failed, and how to rerun only that.

    Args:
        again: the command that was given, without its recipes; `{recipes}` stands for them.
    """
    rows = [
        (one.job.name, there(one, "build"), shards(one), one.job.matrix, one.verdict, there(one, "publish"))
        for one in found
    ]
    console().print(table("", ("recipe", "built", "shards", "matrix", "verdict", "published"), rows, wrap="verdict"))
    for one in found:
        for failure in one.failures:
            say(f"failed: {failure}")
    unfinished = [one.job.asked for one in found if one.missing]
    refuted = [one.job.name for one in found if one.summary is not None and not one.summary["passed"]]
    if refuted:
        say(f"{len(refuted)} did not pass: {', '.join(refuted)}; see zoo.html for their reports")
    if unfinished:
        say(f"{len(unfinished)} of {len(found)} not finished. What is there is not made again; make the rest:")
        say(" ".join(shlex.quote(word) for part in again for word in (unfinished if part == "{recipes}" else [part])))
    elif not refuted:
        say(f"all {len(found)} built, verified and passed")


def there(one: Standing, kind: Kind) -> str:
    """Whether the one task of a kind is done; empty where there is none."""
    if not any(task.kind == kind for task in one.tasks):
        return ""
    return "no" if any(task.kind == kind for task in one.missing) else "yes"


def shards(one: Standing) -> str:
    """`3 of 4`."""
    left, every = (sum(task.kind == "verify" for task in tasks) for tasks in (one.missing, one.tasks))
    return f"{every - left} of {every}" if every else ""


def told(tell: Tell, found: Sequence[Standing], seconds: float) -> None:
    """The end of a run as an event."""
    missing = [task.result for one in found for task in one.missing]
    verdicts = {one.job.name: one.verdict for one in found}
    tell("run-ended", seconds=round(seconds, 2), missing=missing, verdicts=verdicts)
