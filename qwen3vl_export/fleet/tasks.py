"""What each task does: a function of recipe, checkpoint, tools and units, whose result goes into the store.

A task first looks whether its result is there; it can be carried out twice, or by two machines at once, and the first
result stands. What a worker cannot do but another one may (its disk is full, its tools are of other versions) is told
apart from what fails everywhere. Needs neither dask nor a cluster.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..artifact import MANIFEST, SUMMARY
from ..errors import CheckpointError, PublishError, Qwen3VLExportError, SpaceError
from ..hash_cache import sha256_file
from .address import revision_of, tools
from .estimate import estimate
from .graph import LAST, Kind, Task
from .harness import Harness
from .store import FULL, PATIENCE, Store, store_at

SCRATCH = "fleet-"  # what a worker's temporary directories begin with
FETCHED = "fleet-artifacts"  # where a worker keeps the artifact it verifies
OS_ERROR = re.compile(r"os error (\d+)")  # how libraries in Rust tell the number of an error

# made: by this task; there: it was in the store; failed: it would fail anywhere; unable: this machine cannot.
Status = Literal["made", "there", "failed", "unable"]


@dataclass(frozen=True)
class Site:
    """What all tasks of a fleet share."""

    store_url: str
    harness: Harness
    tools: Mapping[str, str]
    harness_version: str
    patience: float = PATIENCE


@dataclass(frozen=True)
class Outcome:
    """How a task ended. `started` is the time of day in seconds, `seconds` how long it took."""

    result: str
    status: Status
    message: str = ""
    worker: str = ""
    started: float = 0.0
    seconds: float = 0.0
    notices: tuple[str, ...] = ()
    trace: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        return self.status in ("made", "there")


def perform(task: Task, site: Site, scratch: Path, worker: str) -> Outcome:
    """Carry out a task; whatever goes wrong is in the outcome.

    Args:
        scratch: directory for what is being made, on a disk with room for an artifact.
        worker: the name of this worker, for people.
    """
    started, clock = time.time(), time.perf_counter()
    notices: list[str] = []

    def ended(status: Status, message: str = "", trace: str = "", **figures: Any) -> Outcome:
        seconds = time.perf_counter() - clock
        return Outcome(task.result, status, message, worker, started, seconds, tuple(notices), trace, figures)

    try:
        if differing := differences(site):
            return ended("unable", differing)
        store = store_at(site.store_url, site.patience, notices.append)
        if store.has(task.proof):
            return ended("there")
        if task.kind != "verify":
            site.harness.forget()  # what a verification kept in memory is not counted in other tasks
        scratch.mkdir(parents=True, exist_ok=True)
        try:
            figures = act(task, site, store, scratch)
        except Exception as error:
            if not store.was_away(error):
                raise
            site.harness.forget()  # it read files of the store, which were gone
            figures = act(task, site, store, scratch)
        return ended("made", **figures)
    except SpaceError as error:
        return ended("unable", f"disk full on {worker}: {error.what}")
    except MemoryError:
        return ended("unable", f"out of memory on {worker}")
    except Qwen3VLExportError as error:
        return ended("failed", str(error))
    except Exception as error:  # a bug of ours must not end the other tasks; its traceback is in the log
        if errno_of(error) in FULL:
            return ended("unable", f"disk full on {worker}: {one_line(error)}")
        return ended("failed", one_line(error), traceback.format_exc())


def act(task: Task, site: Site, store: Store, scratch: Path) -> Mapping[str, Any]:
    """One try, in a directory of its own."""
    with tempfile.TemporaryDirectory(dir=scratch, prefix=SCRATCH, ignore_cleanup_errors=True) as folder:
        return ACTIONS[task.kind](task, site, store, Path(folder), scratch)


def differences(site: Site) -> str:
    """In which versions this process differs from the one that planned; empty if in none."""
    here = {**tools(), "parity harness": site.harness.version()}
    wanted = {**site.tools, "parity harness": site.harness_version}
    return versions_differ(here, wanted)


def versions_differ(here: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """`onnx is 1.22.0 there and 1.23.0 here`, for each that differs."""
    differing = [name for name in wanted if here.get(name) != wanted[name]]
    return ", ".join(f"{name} is {short(here.get(name))} there and {short(wanted[name])} here" for name in differing)


def short(version: str | None) -> str:
    return "missing" if version is None else version if len(version) < 40 else version[:12]


def make_estimate(task: Task, site: Site, store: Store, folder: Path, scratch: Path) -> Mapping[str, Any]:
    store.put(task.result, estimate(task.job.recipe, folder).to_json())
    return {}


def make_artifact(task: Task, site: Site, store: Store, folder: Path, scratch: Path) -> Mapping[str, Any]:
    """Build as `build` does.

    Raises:
        CheckpointError: the checkpoint is not the one that was planned with.
    """
    from ..exporter.pipeline import build

    recipe = task.job.recipe
    with redirect_stderr(io.StringIO()):  # its bar; the fleet has its own
        path = build(recipe, out=folder / recipe.name, log=lambda line: None)
    built = json.loads((path / MANIFEST).read_text("utf-8"))["checkpoint"]
    revision = revision_of(recipe) if built["revision"] == "local" else built["revision"]
    if revision != task.job.revision:
        raise CheckpointError(
            f"{recipe.name}: its checkpoint is {revision} on this worker, {task.job.revision} was planned",
            "Pin it: qwen3vl-export recipes pin",
        )
    store.put_tree(task.result, path, LAST["build"])
    return {"bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file())}


def make_part(task: Task, site: Site, store: Store, folder: Path, scratch: Path) -> Mapping[str, Any]:
    """Verify some units, with what `verify` would run."""
    artifact = artifact_here(task, store, scratch)
    part = site.harness.verify_part(artifact, task.job.matrix, task.units, task.job.recipe.checkpoint_dir)
    store.put(task.result, part)
    return {"units": len(task.units)}


def make_report(task: Task, site: Site, store: Store, folder: Path, scratch: Path) -> Mapping[str, Any]:
    """All parts as one verification. That checks failed is a result like another."""
    root = folder / task.job.name
    root.mkdir()
    (root / MANIFEST).write_bytes(store.read(f"{task.job.artifact}/{MANIFEST}"))
    files = site.harness.merge_parts(root, task.job.matrix, [store.read(name) for name in task.parts])
    made = folder / "report"
    made.mkdir()
    for name, data in files.items():
        (made / name).write_bytes(data)
    store.put_tree(task.result, made, LAST["merge"])
    return {}


def make_publication(task: Task, site: Site, store: Store, folder: Path, scratch: Path) -> Mapping[str, Any]:
    """Publish the artifact with its evidence, also where this very artifact has been published.

    Raises:
        PublishError: another artifact is there.
    """
    from ..publishing import publish

    target = task.job.target
    assert target is not None
    root = folder / task.job.name
    copy_here(store, task.job.artifact, root)
    copy_here(store, task.job.report, folder / "report")
    for path in (folder / "report").iterdir():
        if path.name != SUMMARY:
            path.replace(root / path.name)
    there = Path(target) / MANIFEST
    if there.is_file() and sha256_file(there) != sha256_file(root / MANIFEST):
        raise PublishError(f"{target}: another artifact is there", "Move it elsewhere, or choose another --publish")
    publish(root, target, force=True, log=lambda line: None)
    store.put(task.result, (json.dumps({"target": target, "report": task.job.report}, indent=1) + "\n").encode())
    return {}


Action = Callable[[Task, Site, Store, Path, Path], Mapping[str, Any]]
ACTIONS: Mapping[Kind, Action] = {
    "estimate": make_estimate,
    "build": make_artifact,
    "verify": make_part,
    "merge": make_report,
    "publish": make_publication,
}


def artifact_here(task: Task, store: Store, scratch: Path) -> Path:
    """The artifact of a task as a directory: in the store itself, or fetched; the one fetched last is kept."""
    name = task.job.artifact
    if (path := store.local(name)) is not None:
        return path
    kept = scratch / FETCHED
    found = kept / Path(name).name
    if not found.is_dir():
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        fetching = kept / ".fetching"
        store.fetch_tree(name, fetching)
        fetching.rename(found)
    return found


def copy_here(store: Store, name: str, target: Path) -> None:
    """A directory of the store in another place; files are linked where that is possible."""
    path = store.local(name)
    if path is None:
        store.fetch_tree(name, target)
        return

    def link(source: str, copy: str) -> None:
        try:
            os.link(source, copy)
        except OSError:
            shutil.copyfile(source, copy)

    shutil.copytree(path, target, copy_function=link)


def errno_of(error: Exception) -> int | None:
    """The operating system's number of an error, where it has one."""
    if isinstance(error, OSError):
        return error.errno
    found = OS_ERROR.search(str(error))
    return int(found[1]) if found else None


def one_line(error: BaseException) -> str:
    """`KeyError: 'onnx'`, without line breaks."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
