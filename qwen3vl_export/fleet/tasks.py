"""What each task does: a function of recipe, checkpoint, tools and units, whose result goes into the store.

A task does nothing if its result exists; it can run twice, or on two machines at once, and the first result is kept.
A failure that another worker may not have (a full disk, tools of other versions) is distinguished from one that every
worker would have. Needs neither dask nor a cluster.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..artifact import SUMMARY
from ..errors import CheckpointError, PublishError, Qwen3VLExportError, SpaceError, errno_of
from ..hash_cache import sha256_file
from ..manifest import MANIFEST
from ..output import remove_abandoned, workspace
from .address import revision_of, tools
from .estimate import estimate
from .graph import LAST, Kind, Task
from .harness import Harness
from .store import FULL, PATIENCE, Store, store_at

SCRATCH = "fleet-"  # prefix of a worker's temporary directories
FETCHED = "fleet-artifacts"  # directory of the artifact that a worker fetched last

# made: by this task; there: the result existed; failed: any worker would fail; unable: only this worker cannot.
Status = Literal["made", "there", "failed", "unable"]


@dataclass(frozen=True)
class Site:
    """What all tasks of a fleet have in common."""

    store_url: str
    harness: Harness
    tools: Mapping[str, str]
    harness_version: str
    patience: float = PATIENCE


@dataclass(frozen=True)
class TaskOutcome:
    """How a task ended. `started` is in seconds since the epoch, `seconds` is its duration."""

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
    def succeeded(self) -> bool:
        return self.status in ("made", "there")


def perform(task: Task, site: Site, scratch: Path, worker: str) -> TaskOutcome:
    """Run a task; every failure becomes an outcome.

    Args:
        scratch: directory for unfinished results, on a disk with room for an artifact.
        worker: the name of this worker, for messages.
    """
    started, clock = time.time(), time.perf_counter()
    notices: list[str] = []

    def outcome(status: Status, message: str = "", trace: str = "", **figures: Any) -> TaskOutcome:
        seconds = time.perf_counter() - clock
        return TaskOutcome(task.result, status, message, worker, started, seconds, tuple(notices), trace, figures)

    try:
        if difference := version_differences(site):
            return outcome("unable", difference)
        store = store_at(site.store_url, site.patience, notices.append)
        if store.has(task.proof):
            return outcome("there")
        if task.kind != "verify":
            site.harness.forget()  # other tasks' memory does not include what a verification cached
        scratch.mkdir(parents=True, exist_ok=True)
        try:
            figures = run_action(task, site, store, scratch)
        except Exception as error:
            if not store.was_away(error):
                raise
            site.harness.forget()  # it may have read files of the store while it was unreachable
            figures = run_action(task, site, store, scratch)
        return outcome("made", **figures)
    except SpaceError as error:
        return outcome("unable", f"disk full on {worker}: {error.what}")
    except MemoryError:
        return outcome("unable", f"out of memory on {worker}")
    except Qwen3VLExportError as error:
        return outcome("failed", str(error))
    except Exception as error:  # a bug must not end the other tasks; its traceback is in the log
        if errno_of(error) in FULL:
            return outcome("unable", f"disk full on {worker}: {one_line(error)}")
        return outcome("failed", one_line(error), traceback.format_exc())


def run_action(task: Task, site: Site, store: Store, scratch: Path) -> Mapping[str, Any]:
    """Run a task's action in a temporary directory."""
    remove_abandoned(scratch, SCRATCH)
    with workspace(scratch, SCRATCH) as folder:
        return ACTIONS[task.kind](task, site, store, folder, scratch)


def version_differences(site: Site) -> str:
    """How the versions of this process differ from those of the planning process; empty if they do not."""
    installed = {**tools(), "parity harness": site.harness.version()}
    planned = {**site.tools, "parity harness": site.harness_version}
    return compare_versions(installed, planned)


def compare_versions(installed: Mapping[str, str], planned: Mapping[str, str]) -> str:
    """`onnx is 1.22.0 there and 1.23.0 here`, for each that differs; "there" is the worker."""
    differing = [name for name in planned if installed.get(name) != planned[name]]
    return ", ".join(
        f"{name} is {short(installed.get(name))} there and {short(planned[name])} here" for name in differing
    )


def short(version: str | None) -> str:
    return "missing" if version is None else version if len(version) < 40 else version[:12]


def make_estimate(task: Task, site: Site, store: Store, folder: Path, scratch: Path) -> Mapping[str, Any]:
    store.put(task.result, estimate(task.job.recipe, folder).to_json())
    return {}


def make_artifact(task: Task, site: Site, store: Store, folder: Path, scratch: Path) -> Mapping[str, Any]:
    """Build the artifact, as `build` does.

    Raises:
        CheckpointError: the checkpoint is not the planned one.
    """
    from ..exporter.pipeline import build

    recipe = task.job.recipe
    with redirect_stderr(io.StringIO()):  # its progress bar
        path = build(recipe, out=folder / recipe.name, log=lambda line: None)
    built = json.loads((path / MANIFEST).read_text("utf-8"))["checkpoint"]
    is_recorded = built["revision"] != "local" and not recipe.checkpoint.adapters
    revision = built["revision"] if is_recorded else revision_of(recipe)
    if revision != task.job.revision:
        raise CheckpointError(
            f"{recipe.name}: its checkpoint is {revision} on this worker, {task.job.revision} was planned",
            "Pin it: qwen3vl-export recipes pin",
        )
    store.put_tree(task.result, path, LAST["build"])
    return {"bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file())}


def make_part(task: Task, site: Site, store: Store, folder: Path, scratch: Path) -> Mapping[str, Any]:
    """Verify some units, with the checks of `verify`."""
    artifact = local_artifact(task, store, scratch)
    recipe = task.job.recipe
    part = site.harness.verify_part(artifact, task.job.matrix, task.units, recipe.checkpoint_dir, recipe.adapters)
    store.put(task.result, part)
    return {"units": len(task.units)}


def make_report(task: Task, site: Site, store: Store, folder: Path, scratch: Path) -> Mapping[str, Any]:
    """Merge all parts into one verification; failed checks are no failure of the task."""
    root = folder / task.job.name
    root.mkdir()
    (root / MANIFEST).write_bytes(store.read(f"{task.job.artifact}/{MANIFEST}"))
    files = site.harness.merge_parts(root, task.job.matrix, [store.read(name) for name in task.parts])
    report = folder / "report"
    report.mkdir()
    for name, data in files.items():
        (report / name).write_bytes(data)
    store.put_tree(task.result, report, LAST["merge"])
    return {}


def make_publication(task: Task, site: Site, store: Store, folder: Path, scratch: Path) -> Mapping[str, Any]:
    """Publish the artifact with its evidence; replaces an earlier publication of the same artifact.

    Raises:
        PublishError: the target holds another artifact.
    """
    from ..publishing import publish

    target = task.job.target
    assert target is not None
    root = folder / task.job.name
    copy_tree(store, task.job.artifact, root)
    copy_tree(store, task.job.report, folder / "report")
    for path in (folder / "report").iterdir():
        if path.name != SUMMARY:
            path.replace(root / path.name)
    published = Path(target) / MANIFEST
    if published.is_file() and sha256_file(published) != sha256_file(root / MANIFEST):
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


def local_artifact(task: Task, store: Store, scratch: Path) -> Path:
    """The directory of a task's artifact: in the store itself, or fetched; keeps only the last fetched one."""
    name = task.job.artifact
    if (path := store.local(name)) is not None:
        return path
    cache = scratch / FETCHED
    artifact = cache / Path(name).name
    if not artifact.is_dir():
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(parents=True)
        fetching = cache / ".fetching"
        store.fetch_tree(name, fetching)
        fetching.rename(artifact)
    return artifact


def copy_tree(store: Store, name: str, target: Path) -> None:
    """Copy a directory of the store; files become hard links where that is possible."""
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


def one_line(error: BaseException) -> str:
    """`KeyError: 'onnx'`, without line breaks."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
