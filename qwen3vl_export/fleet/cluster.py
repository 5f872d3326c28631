"""The workers of dask.distributed: a cluster somebody started, or one on this machine.

dask places the tasks, counts memory as a resource, starts a task again elsewhere when its worker dies, and draws the
dashboard. Here is what it leaves open: a scheduler that was restarted is found again and given what was under way,
workers of other versions are refused, and nobody is waited for who does not come. Knows nothing about recipes.
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
from .runner import Tell, machine_memory
from .tasks import Outcome, Site, differences, perform

MEMORY = "MEMORY"  # the resource: bytes a worker has for tasks
CONNECTING = 10.0  # seconds a scheduler may take to answer
LOOKING = 1.0  # seconds between looks at who is there
SERVED = 0.8  # of a machine's memory goes to tasks


@dataclass(frozen=True)
class Described:
    """What a worker says of itself."""

    threads: int
    differences: str


def carry_out(task: Task, site: Site) -> Outcome:
    """A task, on a worker."""
    worker = get_worker()
    return perform(task, site, Path(worker.local_directory), worker.address)


def describe(site: Site, dask_worker: Any = None) -> Described:
    return Described(dask_worker.state.nthreads, differences(site))


async def declare_memory(dask_worker: Any = None) -> None:
    """Tell the scheduler the memory of a worker that was started without saying it."""
    await dask_worker.set_resources(**{MEMORY: dask_worker.memory_manager.memory_limit or SERVED * MEMORY_LIMIT})


class Cluster:
    """An executor on dask's workers; `connect` and `local` are the ways to get one.

    Args:
        address: of the scheduler, by which it is found again; None if it lives and dies with this process.
        tell: takes what happens to the cluster: workers, scheduler-lost, scheduler-back.
        work: what a worker does with a task.
    """

    def __init__(
        self,
        client: Client,
        site: Site,
        tell: Tell,
        address: str | None,
        local: Any = None,
        work: Callable[[Task, Site], Outcome] = carry_out,
    ) -> None:
        self.client = client
        self.work = work
        self.site = site
        self.tell = tell
        self.address = address
        self._local = local
        self._futures: dict[str, tuple[Any, Task, frozenset[str]]] = {}
        self._ended: queue.Queue[Any] = queue.Queue()
        self._workers: dict[str, int] = {}
        self._looked = -LOOKING
        self._alone_since: float | None = None

    @property
    def dashboard(self) -> str | None:
        """Address of dask's own page, if the scheduler serves one."""
        services = self._scheduler()["services"]
        return str(self.client.dashboard_link) if "dashboard" in services else None

    def workers(self) -> Mapping[str, int]:
        if self.client.status == "running" and time.monotonic() - self._looked >= LOOKING:
            self._look()
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

    def ended(self) -> Sequence[Outcome]:
        try:
            future = self._ended.get(timeout=LOOKING)
        except queue.Empty:
            if self.client.status != "running":
                self._recover()
            self._check_company()
            return []
        if future.key not in self._futures:
            return []  # of a scheduler that is no more
        if future.status == "cancelled":
            self._recover()
            return []
        _, task, _ = self._futures.pop(future.key)
        if future.status == "error":
            return [failure(task, future.exception())]
        outcome: Outcome = future.result()
        return [outcome]

    def close(self) -> None:
        self.client.close()
        if self._local is not None:
            self._local.close()

    def check(self) -> None:
        """Hold every worker against this process.

        Raises:
            FleetError: there is none, or one is of other versions or runs several tasks in one process.
        """
        found = self.client.run(describe, self.site, on_error="return")
        if not found:
            raise FleetError(f"{self.address}: has no workers", f"Start one: dask worker {self.address} --nthreads 1")
        for name, one in found.items():
            if not isinstance(one, Described):
                raise FleetError(
                    f"worker {name}: cannot run this project ({first_line(one)})", "Install the same versions there"
                )
            if one.differences:
                raise FleetError(
                    f"worker {name}: {one.differences}: results would not be comparable",
                    "Install the same versions there and here",
                )
            if one.threads != 1:
                raise FleetError(
                    f"worker {name}: runs {one.threads} tasks in one process, and tracing is not made for that",
                    "Start it with --nthreads 1, and --nworkers for more",
                )

    def _scheduler(self) -> Any:
        """What the scheduler says of itself and its workers, asked now: the client's copy has no workers at times."""
        return self.client.sync(self.client.scheduler.identity, n_workers=-1)

    def _look(self) -> None:
        """Who is there now; newcomers that declare no memory are asked."""
        self._looked = time.monotonic()
        try:
            infos = self._scheduler()["workers"]
            silent = [name for name, info in infos.items() if MEMORY not in info["resources"]]
            if silent:
                self.client.run(declare_memory, workers=silent, on_error="ignore")
                infos = self._scheduler()["workers"]
        except (OSError, TimeoutError, ValueError):
            return  # the scheduler is away, which `ended` finds out
        found = {name: int(info["resources"].get(MEMORY, 0)) for name, info in infos.items()}
        lost, new = sorted(set(self._workers) - set(found)), sorted(set(found) - set(self._workers))
        self._workers = found
        self._alone_since = None if found else self._alone_since or time.monotonic()
        if lost or new:
            self.tell("workers", count=len(found), lost=lost, new=new)
        if lost:
            self._let_others()

    def _let_others(self) -> None:
        """Free tasks that were bound to workers of which some are gone."""
        for key, (future, task, avoid) in list(self._futures.items()):
            if avoid:
                del self._futures[key]
                future.cancel()
                self.submit(task, avoid & set(self._workers))

    def _check_company(self) -> None:
        """Raises a FleetStopped where there has been no worker for too long."""
        self.workers()
        if self._alone_since is not None and time.monotonic() - self._alone_since > self.site.patience:
            raise FleetStopped(
                f"no worker is left for {self.site.patience:.0f} s",
                "Start workers and run it again: what is there is not made again",
            )

    def _recover(self) -> None:
        """Find the scheduler again, and give it what was under way: what was finished meanwhile is in the store.

        Raises:
            FleetStopped: it does not come back.
        """
        self.tell("scheduler-lost", scheduler=self.address)
        under_way = [(task, avoid) for _, task, avoid in self._futures.values()]
        self._futures.clear()
        quietly_close(self.client)
        given_up = time.monotonic() + self.site.patience
        while True:
            try:
                assert self.address is not None
                self.client = reach(self.address)
                break
            except FleetError as error:
                if time.monotonic() > given_up:
                    raise FleetStopped(
                        f"{self.address}: the scheduler is gone for {self.site.patience:.0f} s",
                        "Start it and run the fleet again: what is there is not made again",
                    ) from error
                time.sleep(LOOKING)
        self.tell("scheduler-back", scheduler=self.address)
        self._look()
        for task, avoid in under_way:
            self.submit(task, avoid & set(self._workers))


def connect(address: str, site: Site, tell: Tell) -> Cluster:
    """The cluster of a scheduler, its workers checked.

    Raises:
        FleetError: no scheduler answers there, or `Cluster.check` refuses.
    """
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    cluster = Cluster(reach(address), site, tell, address)
    try:
        cluster.check()
        cluster.workers()
    except BaseException:
        cluster.close()
        raise
    return cluster


def local(site: Site, tell: Tell, scratch: Path, largest: int) -> Cluster:
    """A cluster on this machine: as many workers as there are cores, or as fit into memory.

    Args:
        scratch: directory for what workers are making.
        largest: bytes of memory of the largest task.
    """
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    memory, cores = int(SERVED * machine_memory()), os.cpu_count() or 1
    count = max(1, min(cores, memory // max(largest, 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that another dashboard has the usual port
        made = LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            memory_limit=0,  # mapped checkpoints count as used: the resource is the limit
            resources={MEMORY: memory // count},
            local_directory=str(scratch),
            env={"OMP_NUM_THREADS": str(cores // count)},
        )
    cluster = Cluster(Client(made), site, tell, None, made)
    cluster.workers()
    return cluster


def reach(address: str) -> Client:
    """A client of a scheduler.

    Raises:
        FleetError: none answers there.
    """
    try:
        return Client(address, timeout=CONNECTING, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise FleetError(
            f"{address}: no scheduler answers there ({first_line(error)})",
            "Start one: dask scheduler. Or leave --scheduler out",
        ) from error


def failure(task: Task, error: BaseException | None) -> Outcome:
    """What dask gave up, as an outcome."""
    if isinstance(error, KilledWorker):
        return Outcome(task.result, "failed", "every worker that tried it died", error.last_worker.address)
    return Outcome(task.result, "failed", f"{type(error).__name__}: {first_line(error) if error else ''}")


def quietly_close(client: Client) -> None:
    try:
        client.close(timeout=1)
    except Exception as error:  # it is broken already; all that counts is that it is gone
        logging.getLogger(__name__).debug("closing a lost client: %s", error)
