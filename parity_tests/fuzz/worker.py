"""Tries inputs in a process of its own, one after another, within limits of time, memory and reach.

The process that hangs, crashes or grows is replaced, and what it did is the outcome of that input. Linux: memory is
read from /proc.
"""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

from qwen3vl_export.errors import Qwen3VLExportError
from qwen3vl_export.hash_cache import DIRECTORY_VARIABLE

from .guard import Guard
from .mutations import SECRET
from .targets.base import Target

WAIT = 60.0  # seconds in which an input must end, whatever else runs on the machine
START = 300.0  # seconds in which a process must be ready
ADDRESSES = 8 << 30  # bytes that the process may map beyond those it starts with, so that the machine survives it
LINE = 2000  # characters of an error
WORKS, REFUSED = "works", "refused"

Feed = Callable[[bytes], object]


@dataclass(frozen=True)
class Outcome:
    """What an input led to.

    Attributes:
        kind: `WORKS`, `REFUSED` for a proper error, or what went wrong, in a line.
        detail: the error's message, or a traceback.
        seconds: CPU time.
        megabytes: that the process grew by.
    """

    kind: str
    detail: str = ""
    seconds: float = 0.0
    megabytes: float = 0.0

    @property
    def fails(self) -> bool:
        return self.kind not in (WORKS, REFUSED)


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def try_input(feed: Feed, data: bytes, guard: Guard, target: type[Target] = Target) -> Outcome:
    """Feed one input and judge what happens, by the limits of the target."""
    guard.clear()
    before, highest, start = resident_megabytes(), peak_megabytes(), time.process_time()
    kind, detail = WORKS, ""
    signal.setitimer(signal.ITIMER_PROF, target.seconds)
    try:
        feed(data)
    except Qwen3VLExportError as error:
        kind, detail = REFUSED, str(error)
        if len(detail.splitlines()) != 1:
            kind = f"{type(error).__name__} of {len(detail.splitlines())} lines"
        elif len(detail) > LINE:
            kind = f"{type(error).__name__} of over {LINE} characters"
    except BaseException as error:
        kind, detail = f"{type(error).__name__} instead of one line", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    seconds, peak = time.process_time() - start, peak_megabytes()
    grown = peak - before if peak > highest else 0.0
    if guard.escapes:
        kind, detail = f"outside its directory: {guard.escapes[0]}", detail
    elif grown > target.megabytes:
        kind = f"over {target.megabytes:g} MB of memory"
    return Outcome(kind, detail, seconds, grown)


def serve(connection: Connection, target: type[Target], artifact: Path, scratch: Path, log: Path) -> None:
    """Run in the process: open the target, then try every input that arrives and answer with its outcome."""
    crashes = log.open("w")
    faulthandler.enable(crashes)
    faulthandler.register(signal.SIGPROF, crashes, chain=True)
    box = scratch / "box"
    for directory in (box, box / "cache", box / "temporary", (scratch / SECRET).parent):
        directory.mkdir(parents=True, exist_ok=True)
    (scratch / SECRET).write_text(json.dumps({"secret": True}))
    os.environ[DIRECTORY_VARIABLE], tempfile.tempdir = str(box / "cache"), str(box / "temporary")
    os.chdir(box)
    sys.dont_write_bytecode = True
    opened = target(artifact)
    feed = opened.open(box)
    guard = Guard(box, (scratch / SECRET).parent if opened.confined else None)
    warnings.simplefilter("error")  # no warning may reach a terminal
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESSES, mapped + ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    guard.watch()
    connection.send(None)
    with suppress(EOFError):  # until the other end is closed
        while True:
            connection.send(try_input(feed, connection.recv(), guard, target))
    os._exit(0)  # threads that wait for a timeout do not delay the end


class Worker:
    """The process of one target; a context manager, which ends it."""

    def __init__(self, target: type[Target], artifact: Path) -> None:
        self.target, self.artifact = target, artifact
        self._temporary = tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True)
        self._log = Path(self._temporary.name) / "crash.txt"
        self._generation = 0
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._temporary.cleanup()

    def try_input(self, data: bytes) -> Outcome:
        """The outcome of one input, whatever becomes of the process."""
        connection = self._connection or self._start()
        connection.send(data)
        if not connection.poll(WAIT):
            self._end()
            return Outcome(f"no end after {WAIT:g} seconds")
        try:
            outcome: Outcome = connection.recv()
        except (EOFError, ConnectionResetError):
            return self._explain_death()
        return outcome

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._generation += 1
        scratch = Path(self._temporary.name) / str(self._generation)
        arguments = (theirs, self.target, self.artifact, scratch, self._log)
        self._process = context.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        try:
            if not ours.poll(START):
                raise TimeoutError
            ours.recv()
        except (EOFError, TimeoutError) as error:
            self._end()
            raise RuntimeError(f"{self.target.name}: the process that tries inputs does not start") from error
        self._connection = ours
        return ours

    def _explain_death(self) -> Outcome:
        assert self._process is not None
        self._process.join()
        code = self._process.exitcode or 0
        self._end()
        detail = self._log.read_text("utf-8", "replace")
        if code == -signal.SIGPROF:
            return Outcome(f"over {self.target.seconds:g} seconds of CPU time", detail)
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return Outcome(f"the process died: {name}", detail)

    def _end(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None
