"""Verifications that have not ended: what they have found so far, so that one that was killed can go on where it was.

A verification writes the outcome of every check, and the results of the artifact that a later check needs, into a
directory of its own, and deletes it once its evidence is written. `--resume` continues with that directory; without it
a verification starts anew, because evidence is no replay of an earlier one. The directory says what its contents rest
on: artifact, checkpoint, options and the code of both sides. If any of them has changed, nothing in it is used.

    <cache>/unfinished/<artifact and precision>/identity.json    what everything in it rests on
                                               /outcomes.jsonl   one line for each check that is done
                                               /xx/….npz         results of the artifact

Knows outcomes and files; nothing about how anything is computed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import qwen3vl_export
from qwen3vl_export.errors import ParityError
from qwen3vl_export.hash_cache import source_digest
from qwen3vl_export.output import clear, lock_directory, whole_file

from .budget.memory import graph_files
from .evidence.report import versions
from .judging.outcome import Outcome
from .sides.artifact.artifact_results import WORK
from .sides.bench import Bench
from .sides.pytorch.reference_cache import recorded_files

IDENTITY, OUTCOMES = "identity.json", "outcomes.jsonl"
SOURCES = ("**/*.py", "**/*.yaml", "**/*.j2", "cases/media/*")  # of the harness: every file that a verdict rests on
FORGOTTEN = 14 * 24 * 3600  # seconds after which a verification that nobody resumed is deleted


@dataclass(frozen=True)
class UnfinishedRun:
    """The directory of one verification, which this process alone writes to."""

    directory: Path

    def begin(self, artifact: Path, identity: Mapping[str, str], resume: bool) -> dict[str, Outcome]:
        """The outcomes there are; without `resume` there are none, and the directory is emptied.

        Args:
            identity: what all results rest on: a digest for each part of it, by a name for the reader.

        Raises:
            ParityError: there is nothing to resume, or it rests on something else.
        """
        if not resume:
            clear(self.directory)
            with whole_file(self.directory / IDENTITY) as partial:
                partial.write_text(json.dumps(dict(identity)), "utf-8")
            return {}
        recorded = read_identity(self.directory)
        if recorded is None:
            raise ParityError(f"{artifact}: no verification of it was interrupted", "Leave --resume out")
        for name, digest in identity.items():
            if recorded.get(name) != digest:
                what = f"{artifact}: {name} changed since the verification was interrupted"
                raise ParityError(what, "Leave --resume out to start anew")
        outcomes = self.outcomes()
        with whole_file(self.directory / OUTCOMES) as partial:  # without half a line at its end
            partial.write_text("".join(map(line_of, outcomes.values())), "utf-8")
        return outcomes

    def outcomes(self) -> dict[str, Outcome]:
        """Those written down, by the id of their check."""
        path, outcomes = self.directory / OUTCOMES, {}
        for line in path.read_text("utf-8").splitlines() if path.is_file() else ():
            with suppress(ValueError):  # the process was killed while it wrote this line
                outcome = Outcome.from_json(json.loads(line))
                outcomes[outcome.id] = outcome
        return outcomes

    def record(self, outcome: Outcome) -> None:
        """Write down an outcome; one whose check could not be carried out is tried again by the next process."""
        if outcome.error is None:
            with (self.directory / OUTCOMES).open("a", encoding="utf-8") as file:
                file.write(line_of(outcome))

    def finish(self) -> None:
        """Delete the directory: evidence takes its place."""
        shutil.rmtree(self.directory, ignore_errors=True)


def line_of(outcome: Outcome) -> str:
    return json.dumps(outcome.to_json()) + "\n"


@contextmanager
def open_unfinished(root: Path, artifact: Path, precision: str, resume: bool) -> Iterator[UnfinishedRun]:
    """The directory of an artifact's verification, locked against other processes inside.

    Args:
        root: directory of PyTorch's results.
        resume: take that of a verification that was interrupted.

    Raises:
        ParityError: there is none to resume, or its process is still running.
    """
    delete_forgotten(root)
    with ExitStack() as stack:
        if not is_writable(root):
            root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for directory in directories_of(root, artifact, precision):
            if resume and read_identity(directory) is None:
                what = f"{artifact}: no verification of it was interrupted, or its process is still running"
                raise ParityError(what, "Leave --resume out")
            directory.mkdir(parents=True, exist_ok=True)
            if lock(directory, stack):
                break
        try:
            yield UnfinishedRun(directory)
        finally:
            if read_identity(directory) is None:  # it has not begun
                with suppress(OSError):
                    directory.rmdir()


def directories_of(root: Path, artifact: Path, precision: str) -> Iterator[Path]:
    """Those of a precision's verifications: the first one, one that another process runs meanwhile, and so on."""
    name = hashlib.sha256(f"{artifact.resolve()} {precision}".encode()).hexdigest()[:24]
    return (root / WORK / f"{name}-{number}" for number in count())


def lock(directory: Path, stack: ExitStack) -> bool:
    """Lock a directory until the stack is closed; whether no other process holds it."""
    try:
        descriptor = lock_directory(directory)
    except (OSError, ImportError):  # no locks here
        return True
    if descriptor is not None:
        stack.callback(os.close, descriptor)
    return descriptor is not None


def is_unfinished(root: Path, artifact: Path, precision: str) -> bool:
    """Whether a verification of this precision was interrupted."""
    return read_identity(next(directories_of(root, artifact, precision))) is not None


def read_identity(directory: Path) -> dict[str, str] | None:
    """What a verification rests on; None if it has not begun."""
    try:
        values: dict[str, str] = json.loads((directory / IDENTITY).read_text("utf-8"))
        return values
    except (OSError, ValueError):
        return None


def is_writable(root: Path) -> bool:
    """Whether there can be directories of verifications."""
    try:
        (root / WORK).mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(root / WORK, os.W_OK)


def delete_forgotten(root: Path) -> None:
    """Delete what nobody has resumed for two weeks."""
    with suppress(OSError):
        for directory in list((root / WORK).iterdir()):
            if time.time() - directory.stat().st_mtime > FORGOTTEN:
                shutil.rmtree(directory, ignore_errors=True)


def identity_of(bench: Bench, matrix: str | None, cases: Sequence[str]) -> dict[str, str]:
    """What the outcomes of a verification rest on: a digest for each part of it, by a name for the reader."""
    artifact = bench.artifact
    files = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in graph_files(artifact))
    sources = source_digest(Path(__file__).parent, SOURCES), source_digest(Path(qwen3vl_export.__file__).parent)
    parts: dict[str, object] = {
        "the artifact": (artifact.manifest_sha256, artifact.precision, files),
        "its checkpoint": sorted(recorded_files(artifact.manifest.checkpoint).items()),
        "this program": (sources, versions()),
        "the selection of checks": (matrix, bench.matrix.seed, tuple(cases)),
        "a task": [(task.name, task.sha256) for task in bench.tasks],
    }
    return {name: hashlib.sha256(repr(part).encode()).hexdigest() for name, part in parts.items()}
