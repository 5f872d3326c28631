"""The workers of dask.distributed: a running cluster, or one started on this machine.

dask places the tasks, counts memory as a resource, restarts a task elsewhere when its worker dies, and serves the
dashboard. This module adds the rest: it reconnects to a restarted scheduler and submits unfinished tasks again, refuses
workers of other versions, and does not wait forever for workers. Knows nothing about recipes.
"""

from __future__ import annotations

import logging
import os
import queue
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed import Client, LocalCluster, get_worker
from distributed.scheduler import KilledWorker
from distributed.system import MEMORY_LIMIT

from ..errors import FleetError, FleetStopped, first_line
from .graph import Task
from .runner import Emit, machine_memory
from .tasks import Site, TaskOutcome, perform, version_differences

MEMORY = "MEMORY"  # the resource: bytes a worker has for tasks
CONNECT_TIMEOUT = 10.0  # seconds a scheduler may take to answer
POLLING = 1.0  # seconds between two queries for the workers
USABLE = 0.8  # of a machine's memory is for tasks


@dataclass(frozen=True)
class WorkerInfo:
    """What a worker reports about itself."""

    threads: int
    differences: str


def carry_out(task: Task, site: Site) -> TaskOutcome:
    """A task, on a worker."""
    worker = get_worker()
    return perform(task, site, Path(worker.local_directory), worker.address)


def describe(site: Site, dask_worker: Any = None) -> WorkerInfo:
    return WorkerInfo(dask_worker.state.nthreads, version_differences(site))


async def declare_memory(dask_worker: Any = None) -> None:
    """Declare to the scheduler the memory of a worker that was started without a memory resource."""
    await dask_worker.set_resources(**{MEMORY: dask_worker.memory_manager.memory_limit or USABLE * MEMORY_LIMIT})


class Cluster:
    """An executor on dask's workers; `connect` and `local` are the ways to get one.

    Args:
        address: of the scheduler, to reconnect to; None if it ends with this process.
        emit: takes what happens to the cluster: workers, scheduler-lost, scheduler-back.
        work: what a worker does with a task.
    """

    def __init__(
        self,
        client: Client,
        site: Site,
        emit: Emit,
        address: str | None,
        local: Any = None,
        work: Callable[[Task, Site], TaskOutcome] = carry_out,
    ) -> None:
        self.client = client
        self.work = work
        self.site = site
        self.emit = emit
        self.address = address
        self._local = local
        self._futures: dict[str, tuple[Any, Task, frozenset[str]]] = {}
        self._ended: queue.Queue[Any] = queue.Queue()
        self._workers: dict[str, int] = {}
        self._polled_at = -POLLING
        self._without_workers_since: float | None = None

    @property
    def dashboard(self) -> str | None:
        """Address of dask's own page, if the scheduler serves one."""
        services = self._scheduler()["services"]
        return str(self.client.dashboard_link) if "dashboard" in services else None

    def workers(self) -> Mapping[str, int]:
        if self.client.status == "running" and time.monotonic() - self._polled_at >= POLLING:
            self._update_workers()
        return self._workers

    def submit(self, task: Task, avoid: frozenset[str]) -> None:
        key = f"{task.kind}-{task.job.name}-{uuid.uuid4().hex}"  # two fleets may share a scheduler
        future = self.client.submit(
            self.work,
            task,
            self.site,
            key=key,
            pure=False,
            resources={MEMORY: task.memory},
            workers=[name for name in self._workers if name not in avoid] if avoid else None,
        )
        self._futures[key] = (future, task, avoid)
        future.add_done_callback(self._ended.put)

    def ended(self) -> Sequence[TaskOutcome]:
        try:
            future = self._ended.get(timeout=POLLING)
        except queue.Empty:
            if self.client.status != "running":
                self._recover()
            self._check_workers()
            return []
        if future.key not in self._futures:
            return []  # of an earlier scheduler
        if future.status == "cancelled":
            self._recover()
            return []
        _, task, _ = self._futures.pop(future.key)
        if future.status == "error":
            return [outcome_of_failure(task, future.exception())]
        outcome: TaskOutcome = future.result()
        return [outcome]

    def close(self) -> None:
        self.client.close()
        if self._local is not None:
            self._local.close()

    def check(self) -> None:
        """Compare every worker with this process.

        Raises:
            FleetError: there is no worker, or one has other versions or runs several tasks in one process.
        """
        reports = self.client.run(describe, self.site, on_error="return")
        if not reports:
            raise FleetError(f"{self.address}: has no workers", f"Start one: dask worker {self.address} --nthreads 1")
        for name, info in reports.items():
            if not isinstance(info, WorkerInfo):
                raise FleetError(
                    f"worker {name}: cannot run this project ({first_line(info)})", "Install the same versions there"
                )
            if info.differences:
                raise FleetError(
                    f"worker {name}: {info.differences}: results would not be comparable",
                    "Install the same versions on both",
                )
            if info.threads != 1:
                raise FleetError(
                    f"worker {name}: runs {info.threads} tasks in one process, which tracing does not support",
                    "Start it with --nthreads 1, and --nworkers for more",
                )

    def _scheduler(self) -> Any:
        """The scheduler's current description of itself and its workers; the client's copy may lack the workers."""
        return self.client.sync(self.client.scheduler.identity, n_workers=-1)

    def _update_workers(self) -> None:
        """Query the workers; those that declare no memory are made to."""
        self._polled_at = time.monotonic()
        try:
            infos = self._scheduler()["workers"]
            silent = [name for name, info in infos.items() if MEMORY not in info["resources"]]
            if silent:
                self.client.run(declare_memory, workers=silent, on_error="ignore")
                infos = self._scheduler()["workers"]
        except (OSError, TimeoutError, ValueError):
            return  # the scheduler is unreachable, which `ended` notices
        workers = {name: int(info["resources"].get(MEMORY, 0)) for name, info in infos.items()}
        lost, new = sorted(set(self._workers) - set(workers)), sorted(set(workers) - set(self._workers))
        self._workers = workers
        self._without_workers_since = None if workers else self._without_workers_since or time.monotonic()
        if lost or new:
            self.emit("workers", count=len(workers), lost=lost, new=new)
        if lost:
            self._release_tasks()

    def _release_tasks(self) -> None:
        """Submit tasks that exclude workers again: some of the workers they were bound to are gone."""
        for key, (future, task, avoid) in list(self._futures.items()):
            if avoid:
                del self._futures[key]
                future.cancel()
                self.submit(task, avoid & set(self._workers))

    def _check_workers(self) -> None:
        """Fail if there has been no worker for too long.

        Raises:
            FleetStopped: no worker for `patience` seconds.
        """
        self.workers()
        if (
            self._without_workers_since is not None
            and time.monotonic() - self._without_workers_since > self.site.patience
        ):
            raise FleetStopped(
                f"no worker for {self.site.patience:.0f} s",
                "Start workers and run it again: what is there is not made again",
            )

    def _recover(self) -> None:
        """Reconnect to the scheduler and submit the unfinished tasks again; results made meanwhile are in the store.

        Raises:
            FleetStopped: it does not answer for `patience` seconds.
        """
        self.emit("scheduler-lost", scheduler=self.address)
        unfinished = [(task, avoid) for _, task, avoid in self._futures.values()]
        self._futures.clear()
        close_client(self.client)
        deadline = time.monotonic() + self.site.patience
        while True:
            try:
                assert self.address is not None
                self.client = connect_client(self.address)
                break
            except FleetError as error:
                if time.monotonic() > deadline:
                    raise FleetStopped(
                        f"{self.address}: the scheduler is gone for {self.site.patience:.0f} s",
                        "Start it and run the fleet again: what is there is not made again",
                    ) from error
                time.sleep(POLLING)
        self.emit("scheduler-back", scheduler=self.address)
        self._update_workers()
        for task, avoid in unfinished:
            self.submit(task, avoid & set(self._workers))


def connect(address: str, site: Site, emit: Emit) -> Cluster:
    """Connect to a scheduler and check its workers.

    Raises:
        FleetError: no scheduler answers there, or `Cluster.check` refuses.
    """
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    cluster = Cluster(connect_client(address), site, emit, address)
    try:
        cluster.check()
        cluster.workers()
    except BaseException:
        cluster.close()
        raise
    return cluster


def local(site: Site, emit: Emit, scratch: Path, largest: int) -> Cluster:
    """Start a cluster on this machine: as many workers as there are cores, or as fit into memory.

    Args:
        scratch: directory for unfinished results.
        largest: bytes of memory of the largest task.
    """
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    memory, cores = int(USABLE * machine_memory()), os.cpu_count() or 1
    count = max(1, min(cores, memory // max(largest, 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that another dashboard has the usual port
        workers = LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            memory_limit=0,  # mapped checkpoints count as used: the resource is the limit
            resources={MEMORY: memory // count},
            local_directory=str(scratch),
            env={"OMP_NUM_THREADS": str(cores // count)},
        )
    cluster = Cluster(Client(workers), site, emit, None, workers)
    cluster.workers()
    return cluster


def connect_client(address: str) -> Client:
    """Connect a client to a scheduler.

    Raises:
        FleetError: none answers there.
    """
    try:
        return Client(address, timeout=CONNECT_TIMEOUT, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise FleetError(
            f"{address}: no scheduler answers there ({first_line(error)})",
            "Start one: dask scheduler. Or leave --scheduler out",
        ) from error


def outcome_of_failure(task: Task, error: BaseException | None) -> TaskOutcome:
    """The outcome of a task that dask gave up."""
    if isinstance(error, KilledWorker):
        return TaskOutcome(task.result, "failed", "every worker that tried it died", error.last_worker.address)
    return TaskOutcome(task.result, "failed", f"{type(error).__name__}: {first_line(error) if error else ''}")


def close_client(client: Client) -> None:
    try:
        client.close(timeout=1)
    except Exception as error:  # it is broken already; all that counts is that it is gone
        logging.getLogger(__name__).debug("closing a lost client: %s", error)
