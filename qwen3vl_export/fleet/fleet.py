"""A fleet from its recipes to its store: estimate, plan, carry out, report. `plan`, `run`, `status` are commands.

Knows the order of the steps; nothing about how each is done.
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
from ..hub import SCHEME
from ..output import remove_abandoned, workspace
from ..replaceable import check_output
from .account import JobStatus, emit_end, statuses_of, store_failures
from .address import tools
from .events import Events
from .graph import KINDS, Job, Task, jobs_of, publication_address
from .harness import Harness
from .progress import ProgressDisplay
from .runner import Executor, Serial, check_memory, machine_memory, run_tasks
from .store import PATIENCE, Store, open_store
from .tasks import Site, TaskOutcome
from .zoo import write_zoo

RUN_SCRATCH = "fleet-run-"  # prefix of the temporary directory of a run

RUNS = "runs"


@dataclass(frozen=True)
class FleetOptions:
    """The arguments of the command line."""

    recipes: Sequence[str]
    store_url: str
    harness: Harness
    scheduler: str | None = None
    matrix: str | None = None
    target: str | None = None
    log: Path | None = None
    scratch: Path | None = None
    patience: float = PATIENCE


def plan(options: FleetOptions) -> list[JobStatus]:
    """The status of each job and the estimates of what is missing; makes missing estimates, and nothing else.

    Raises:
        Qwen3VLExportError: something is wrong with a recipe, the store, the scheduler or its workers.
    """
    jobs, store = open_jobs(options, create=True)
    events = Events(options.log)
    with scratch_directory(options) as scratch:
        estimate(jobs, store, options, scratch, events)
    return statuses_of(jobs, store)


def status(options: FleetOptions) -> list[JobStatus]:
    """The status of each job; writes nothing."""
    return statuses_of(*open_jobs(options, create=False))


def run(options: FleetOptions) -> list[JobStatus]:
    """Make everything that is missing, and the page of the store.

    Raises:
        Qwen3VLExportError: as `plan`; or all workers or the scheduler are gone. Finished results are in the store.
    """
    jobs, store = open_jobs(options, create=True)
    start, events = time.perf_counter(), Events(options.log)
    with scratch_directory(options) as scratch:
        estimate(jobs, store, options, scratch, events)
        tasks = [task for status in statuses_of(jobs, store) for task in status.missing if task.kind != "estimate"]
        if tasks:
            carry_out(tasks, store, options, scratch, events)
    statuses = statuses_of(jobs, store)
    emit_end(events, statuses, time.perf_counter() - start)
    if tasks:
        store.put(f"{RUNS}/{events.run}.jsonl", events.text())
    write_zoo(store)
    return statuses


def open_jobs(options: FleetOptions, create: bool) -> tuple[list[Job], Store]:
    """The jobs and their store; makes a directory's path absolute, because workers have another working directory.

    Args:
        create: create a missing store, and check that every job can be published.
    """
    jobs = jobs_of(options.recipes, options.matrix, options.target, options.harness)
    store = open_store(absolute(options.store_url), create=create, patience=options.patience, log=say)
    if create:
        for job in jobs:
            check_target(job, store)
    return jobs, store


def check_target(job: Job, store: Store) -> None:
    """Refuse a directory that a job cannot be published to, before building anything.

    Raises:
        BuildError: the directory is not an artifact, or contains what the job reads.
    """
    if job.target is None or job.target.startswith(SCHEME) or store.has(publication_address(job)):
        return
    check_output(Path(job.target), force=True, inputs=job.recipe.inputs)


def absolute(url: str) -> str:
    return url if "://" in url else str(Path(url).expanduser().absolute())


def estimate(jobs: Sequence[Job], store: Store, options: FleetOptions, scratch: Path, events: Events) -> None:
    """Store the missing estimates of jobs."""
    tasks = [task for status in statuses_of(jobs, store) for task in status.missing if task.kind == "estimate"]
    if tasks:
        carry_out(tasks, store, options, scratch, events)


def carry_out(tasks: Sequence[Task], store: Store, options: FleetOptions, scratch: Path, events: Events) -> None:
    """Open an executor and run tasks on it, with progress and a log; stores failures.

    Raises:
        FleetError: a task needs more memory than any worker has, or all workers are gone.
    """
    site = Site(store.url, options.harness, tools(), options.harness.version(), options.patience)
    totals = Counter(str(task.kind) for task in tasks)
    outcomes: dict[str, TaskOutcome] = {}
    executor = executor_for(tasks, site, options, scratch, events)
    try:
        check_memory(tasks, executor.workers())
        if executor.dashboard is not None:
            say(f"{len(executor.workers())} workers; dashboard: {executor.dashboard}")
        events("run-started", tasks=dict(totals), workers=len(executor.workers()), store=store.url)
        with ProgressDisplay({kind: totals[kind] for kind in KINDS}) as display:
            events.listeners.append(display)
            try:
                run_tasks(tasks, executor, events, outcomes)
            finally:
                events.listeners.remove(display)
        store_failures(tasks, outcomes, store)
    except FleetError:
        if outcomes:
            unfinished = [task for task in tasks if not (task.result in outcomes and outcomes[task.result].succeeded)]
            say(f"stopped with {len(unfinished)} of {len(tasks)} tasks to do: " + ", ".join(count_labels(unfinished)))
        raise
    finally:
        executor.close()


def count_labels(tasks: Sequence[Task]) -> list[str]:
    """Tasks as words, those of one kind and recipe together: `3 x verify tiny`."""
    counts = Counter(f"{task.kind} {task.job.name}" for task in tasks)
    return [label if count == 1 else f"{count} x {label}" for label, count in counts.items()]


def executor_for(tasks: Sequence[Task], site: Site, options: FleetOptions, scratch: Path, events: Events) -> Executor:
    """The workers of the scheduler, if one is given; else a cluster on this machine; without dask, this process."""
    if options.scheduler is None and find_spec("distributed") is None:
        return Serial(site, scratch, machine_memory())
    from .cluster import connect, local

    if options.scheduler is not None:
        return connect(options.scheduler, site, events)
    return local(site, events, scratch, max(task.memory for task in tasks))


@contextmanager
def scratch_directory(options: FleetOptions) -> Iterator[Path]:
    """A temporary directory of this run, for unfinished results; those that killed runs left are removed first."""
    parent = options.scratch or Path(tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(parent, RUN_SCRATCH)
    with workspace(parent, RUN_SCRATCH) as folder:
        yield folder
