"""A fleet from its recipes to its store: estimate, plan, carry out, say what is there. Three functions tell the story.

Knows the order of things; how each is done is told elsewhere.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..console import say
from ..errors import FleetError
from ..publishing import SCHEME
from ..replaceable import check_output
from .account import Standing, note_failures, standings, told
from .address import tools
from .events import Events
from .graph import KINDS, Job, Task, jobs_of, publication_address
from .harness import Harness
from .progress import Shown
from .runner import Executor, Serial, check_memory, machine_memory, run_tasks
from .store import PATIENCE, Store, open_store
from .tasks import Outcome, Site
from .zoo import write_zoo

RUNS = "runs"


@dataclass(frozen=True)
class Asked:
    """What the command line said."""

    recipes: Sequence[str]
    store_url: str
    harness: Harness
    scheduler: str | None = None
    matrix: str | None = None
    target: str | None = None
    log: Path | None = None
    scratch: Path | None = None
    patience: float = PATIENCE


def plan(asked: Asked) -> list[Standing]:
    """How far each job is and what the rest will take; estimates what was never estimated, and does nothing else.

    Raises:
        Qwen3VLExportError: a recipe, the store, the scheduler or its workers are not as they should be.
    """
    jobs, store = opened(asked, make=True)
    events = Events(asked.log)
    with scratch_of(asked) as scratch:
        estimate(jobs, store, asked, scratch, events)
    return standings(jobs, store)


def status(asked: Asked) -> list[Standing]:
    """How far each job is; writes nothing."""
    return standings(*opened(asked, make=False))


def run(asked: Asked) -> list[Standing]:
    """Make everything that is missing, and the page over the store.

    Raises:
        Qwen3VLExportError: as `plan`; or all workers or the scheduler went away and did not come back. What was
            finished by then is in the store.
    """
    jobs, store = opened(asked, make=True)
    start, events = time.perf_counter(), Events(asked.log)
    with scratch_of(asked) as scratch:
        estimate(jobs, store, asked, scratch, events)
        tasks = [task for one in standings(jobs, store) for task in one.missing if task.kind != "estimate"]
        if tasks:
            carry_out(tasks, store, asked, scratch, events)
    found = standings(jobs, store)
    told(events, found, time.perf_counter() - start)
    if tasks:
        store.put(f"{RUNS}/{events.run}.jsonl", events.text())
    write_zoo(store)
    return found


def opened(asked: Asked, make: bool) -> tuple[list[Job], Store]:
    """The jobs and their store; a directory's path is made absolute, for workers start elsewhere.

    Args:
        make: something is to be made: the store where there is none, and what can be published nowhere is refused.
    """
    jobs = jobs_of(asked.recipes, asked.matrix, asked.target, asked.harness)
    store = open_store(absolute(asked.store_url), make=make, patience=asked.patience, log=say)
    if make:
        for job in jobs:
            check_target(job, store)
    return jobs, store


def check_target(job: Job, store: Store) -> None:
    """Refuse a directory that a job could not be published to, before anything is built for it.

    Raises:
        BuildError: something is there that is no artifact, or it holds what the job reads.
    """
    if job.target is None or job.target.startswith(SCHEME) or store.has(publication_address(job)):
        return
    check_output(Path(job.target), force=True, inputs=job.recipe.inputs)


def absolute(url: str) -> str:
    return url if "://" in url else str(Path(url).expanduser().absolute())


def estimate(jobs: Sequence[Job], store: Store, asked: Asked, scratch: Path, events: Events) -> None:
    """Put an estimate of every job into the store, where there is none."""
    tasks = [task for one in standings(jobs, store) for task in one.missing if task.kind == "estimate"]
    if tasks:
        carry_out(tasks, store, asked, scratch, events)


def carry_out(tasks: Sequence[Task], store: Store, asked: Asked, scratch: Path, events: Events) -> None:
    """Tasks on an executor that is opened for them, shown and logged; failures are kept in the store.

    Raises:
        FleetError: a task needs more memory than any worker has, or the workers went away.
    """
    site = Site(store.url, asked.harness, tools(), asked.harness.version(), asked.patience)
    totals = Counter(str(task.kind) for task in tasks)
    outcomes: dict[str, Outcome] = {}
    executor = executor_for(tasks, site, asked, scratch, events)
    try:
        check_memory(tasks, executor.workers())
        if executor.dashboard is not None:
            say(f"{len(executor.workers())} workers; dashboard: {executor.dashboard}")
        events("run-started", tasks=dict(totals), workers=len(executor.workers()), store=store.url)
        with Shown({kind: totals[kind] for kind in KINDS}) as shown:
            events.listeners.append(shown)
            try:
                run_tasks(tasks, executor, events, outcomes)
            finally:
                events.listeners.remove(shown)
        note_failures(tasks, outcomes, store)
    except FleetError:
        if outcomes:
            unfinished = [task for task in tasks if not (task.result in outcomes and outcomes[task.result].good)]
            say(f"stopped with {len(unfinished)} of {len(tasks)} tasks to do: " + ", ".join(labels(unfinished)))
        raise
    finally:
        executor.close()


def labels(tasks: Sequence[Task]) -> list[str]:
    """What tasks are, those of one kind and recipe together: `3 x verify tiny`."""
    counts = Counter(f"{task.kind} {task.job.name}" for task in tasks)
    return [label if count == 1 else f"{count} x {label}" for label, count in counts.items()]


def executor_for(tasks: Sequence[Task], site: Site, asked: Asked, scratch: Path, events: Events) -> Executor:
    """The scheduler's workers, else a cluster on this machine, else, without dask, this process."""
    if asked.scheduler is None and find_spec("distributed") is None:
        return Serial(site, scratch, machine_memory())
    from .cluster import connect, local

    if asked.scheduler is not None:
        return connect(asked.scheduler, site, events)
    return local(site, events, scratch, max(task.memory for task in tasks))


@contextmanager
def scratch_of(asked: Asked) -> Iterator[Path]:
    """A directory of this run's own, for what is being made."""
    if asked.scratch is not None:
        asked.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=asked.scratch, prefix="fleet-run-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
