"""A dask scheduler and workers as processes of their own on loopback, to be killed and started again."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed import Client

ROOT = Path(__file__).resolve().parents[2]
MEMORY = 16e9  # bytes each worker declares: the resource is counted, not taken
SMALL_DISK = 100_000  # bytes of the largest file a worker with a full disk can write
WAITING = 90.0  # seconds until a test gives up


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(condition: Callable[[], Any], what: str, timeout: float = WAITING) -> Any:
    """Waits for a condition to hold; returns what it found."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.2)
    raise AssertionError(f"after {timeout:.0f} s still no {what}")


@dataclass
class Processes:
    """A scheduler and its workers; `cluster` is the way to get them."""

    folder: Path
    port: int = field(default_factory=free_port)
    scheduler: subprocess.Popen[bytes] | None = None
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    disks: dict[str, Path] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def start_scheduler(self) -> None:
        options = ["--port", str(self.port), "--host", "127.0.0.1", "--no-dashboard", "--no-show"]
        self.scheduler = self._start("scheduler", "dask_scheduler", options)

    def start_worker(
        self,
        name: str,
        *,
        memory: float = MEMORY,
        disk: Path | None = None,
        small_disk: bool = False,
        threads: int = 1,
    ) -> None:
        """Start a worker, or one in the place of another.

        Args:
            memory: bytes it declares.
            disk: where it makes things; a new directory unless said.
            small_disk: no file of it can be larger than `SMALL_DISK`.
        """
        self.disks[name] = disk or self.folder / f"{name}-{uuid.uuid4().hex[:6]}"
        options = [self.address, "--name", name, "--nthreads", str(threads), "--no-nanny", "--memory-limit", "0"]
        options += ["--resources", f"MEMORY={memory:.0f}", "--no-dashboard", "--local-directory", str(self.disks[name])]
        limit = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL_DISK, SMALL_DISK))) if small_disk else None
        self.workers[name] = self._start(name, "dask_worker", options, limit)

    def wait_for_workers(self) -> None:
        with self.client() as client:
            client.wait_for_workers(len(self.workers), timeout=WAITING)

    def kill(self, name: str) -> None:
        """kill -9."""
        process = self.workers.pop(name)
        process.kill()
        process.wait()

    def restart_scheduler(self) -> None:
        """kill -9, and a new one that knows nothing; its workers end by themselves and are started again."""
        assert self.scheduler is not None
        self.scheduler.kill()
        self.scheduler.wait()
        self.start_scheduler()
        for name, process in list(self.workers.items()):
            process.kill()
            process.wait()
            self.start_worker(name)

    def working(self, prefix: str) -> str | None:
        """The name of a worker that is carrying out a task of that kind."""
        with self.client() as client:
            described = client.sync(client.scheduler.identity, n_workers=-1)
            names = {address: str(info["name"]) for address, info in described["workers"].items()}
            for address, keys in client.processing().items():
                if (
                    address in names
                    and any(str(key).startswith(prefix) for key in keys)
                    and any(self.made_in(names[address]))
                ):
                    return names[address]
        return None

    def made_in(self, name: str) -> Iterator[Path]:
        """Directories in which a worker is making something right now."""
        return self.disks[name].glob("dask-scratch-space/*/fleet-*/")

    def client(self) -> Any:
        return Client(self.address, timeout=WAITING, set_as_default=False)

    def stop(self) -> None:
        for process in (*self.workers.values(), self.scheduler):
            if process is not None:
                process.kill()
                process.wait()

    def _start(
        self, name: str, program: str, options: list[str], before: Callable[[], None] | None = None
    ) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        command = [sys.executable, "-m", f"distributed.cli.{program}", *options]
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, preexec_fn=before, start_new_session=True
            )


@contextmanager
def cluster(folder: Path, *names: str, **options: Any) -> Iterator[Processes]:
    """A scheduler and workers of these names; all of them are gone afterwards."""
    made = Processes(folder)
    try:
        made.start_scheduler()
        for name in names:
            made.start_worker(name, **options)
        made.wait_for_workers()
        yield made
    finally:
        with contextlib.suppress(ProcessLookupError):
            made.stop()
