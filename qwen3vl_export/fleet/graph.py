"""The work of a fleet as data: jobs, one for each recipe, and the tasks they fall into.

    estimate ▸ build ▸ verify, in shards of units ▸ merge into one parity.json ▸ publish

The estimate in the store determines how a verification is cut into shards, not the available machines, so that a rerun
cuts in the same places. Knows addresses and sums; nothing about how a task is carried out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ..artifact import PARITY
from ..errors import FleetError
from ..hub import SCHEME
from ..manifest import MANIFEST
from ..recipe import load_recipe
from ..recipe.model import Recipe
from .address import address, revision_of, tools
from .estimate import ESTIMATING_MEMORY, ESTIMATING_SECONDS, MERGING_MEMORY, MERGING_SECONDS, Estimate
from .harness import Harness

SHARD_SECONDS = 30.0  # of work in a shard at least; docs/fleet.md has the arithmetic
OPENINGS = 10  # a shard takes at least this many times what opening its artifact takes
PUBLISHING_SECONDS = 20.0

Kind = Literal["estimate", "build", "verify", "merge", "publish"]
KINDS: tuple[Kind, ...] = ("estimate", "build", "verify", "merge", "publish")
FOLDERS: Mapping[Kind, str] = {
    "estimate": "estimates",
    "build": "artifacts",
    "verify": "parts",
    "merge": "reports",
    "publish": "published",
}
LAST: Mapping[Kind, str] = {"build": MANIFEST, "merge": PARITY}  # results that are directories: the file that ends them


@dataclass(frozen=True)
class Job:
    """One recipe of a fleet, and where its results are.

    Attributes:
        revision: commit of the checkpoint, or the digest of its directory.
        units: of its verification: name -> how many ordinary cases each costs.
        target: where to publish it; None does not publish.
        argument: the recipe as the user named it.
    """

    recipe: Recipe
    revision: str
    matrix: str
    units: Mapping[str, float]
    estimate: str
    artifact: str
    report: str
    target: str | None = None
    argument: str = ""

    @property
    def name(self) -> str:
        return self.recipe.name


@dataclass(frozen=True)
class Task:
    """One piece of work.

    Attributes:
        result: its result's name in the store, which identifies the task.
        needs: results of other tasks that it reads.
        units: of a verification.
        memory: estimated peak, in bytes.
        seconds: estimated.
    """

    kind: Kind
    job: Job
    result: str
    needs: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    memory: int = 0
    seconds: float = 0.0
    parts: tuple[str, ...] = field(default=(), repr=False)  # of a merge: the shards' results, in order

    @property
    def proof(self) -> str:
        """The file in the store whose presence means that the result is complete."""
        return f"{self.result}/{LAST[self.kind]}" if self.kind in LAST else self.result

    @property
    def label(self) -> str:
        """`verify tiny (12 units from square-96x96)`."""
        units = f" ({len(self.units)} units from {self.units[0]})" if self.units else ""
        return f"{self.kind} {self.job.name}{units}"


def jobs_of(recipes: Sequence[str], matrix: str | None, target: str | None, harness: Harness) -> list[Job]:
    """A job for each recipe.

    Args:
        recipes: files or names.
        matrix: of every job; defaults to each recipe's.
        target: where to publish: a directory or `hf://org`, followed by the recipe's name unless it contains {name}.

    Raises:
        Qwen3VLExportError: a recipe is unknown or wrong, two have the same name, or a checkpoint is missing.
    """
    jobs: dict[str, Job] = {}
    for name in dict.fromkeys(recipes):
        recipe = load_recipe(name)
        if recipe.name in jobs:
            raise FleetError(f"two recipes are called {recipe.name}", "Give one of them another name")
        jobs[recipe.name] = replace(job_of(recipe, matrix or recipe.parity.matrix, target, harness), argument=name)
    return list(jobs.values())


def job_of(recipe: Recipe, matrix: str, target: str | None, harness: Harness) -> Job:
    revision, units = revision_of(recipe), harness.units(recipe, matrix)
    build = {"recipe": recipe.to_json_dict(), "revision": revision, "tools": dict(tools())}
    verify = {**build, "harness": harness.version(), "matrix": matrix, "units": list(units)}
    return Job(
        recipe=recipe,
        revision=revision,
        matrix=matrix,
        units=units,
        estimate=address(FOLDERS["estimate"], recipe.name, build, ".json"),
        artifact=address(FOLDERS["build"], recipe.name, build),
        report=address(FOLDERS["merge"], recipe.name, verify),
        target=None if target is None else target_of(target, recipe.name),
    )


def target_of(target: str, name: str) -> str:
    """Where one artifact is published; directories as absolute paths, for workers start elsewhere."""
    full = target.replace("{name}", name) if "{name}" in target else f"{target.rstrip('/')}/{name}"
    return full if full.startswith(SCHEME) else str(Path(full).expanduser().absolute())


def estimate_task(job: Job) -> Task:
    return Task("estimate", job, job.estimate, memory=ESTIMATING_MEMORY, seconds=ESTIMATING_SECONDS)


def tasks_of(job: Job, estimate: Estimate) -> list[Task]:
    """Everything between an estimated recipe and its report or publication."""
    build = Task("build", job, job.artifact, (), (), estimate.build_memory, estimate.build_seconds)
    parts = [
        Task("verify", job, part_address(job, units), (job.artifact,), units, estimate.verify_memory, seconds)
        for units, seconds in cut_into_shards(
            job.units, estimate.unit_seconds, max(SHARD_SECONDS, OPENINGS * estimate.opening_seconds)
        )
    ]
    names = tuple(part.result for part in parts)
    merge = Task("merge", job, job.report, (job.artifact, *names), (), MERGING_MEMORY, MERGING_SECONDS, names)
    tasks = [build, *parts, merge]
    if job.target is not None:
        result = publication_address(job)
        tasks.append(Task("publish", job, result, (job.report,), (), MERGING_MEMORY, PUBLISHING_SECONDS))
    return tasks


def part_address(job: Job, units: Sequence[str]) -> str:
    return address(FOLDERS["verify"], job.name, {"report": job.report, "units": list(units)}, ".json")


def publication_address(job: Job) -> str:
    return address(FOLDERS["publish"], job.name, {"report": job.report, "target": job.target}, ".json")


def cut_into_shards(
    units: Mapping[str, float], unit_seconds: float, shard_seconds: float
) -> list[tuple[tuple[str, ...], float]]:
    """Neighbouring units in groups of at most `shard_seconds`, or of one unit; and the seconds of each group."""
    groups: list[tuple[tuple[str, ...], float]] = []
    names: list[str] = []
    seconds = 0.0
    for name, weight in units.items():
        cost = weight * unit_seconds
        if names and seconds + cost > shard_seconds:
            groups.append((tuple(names), seconds))
            names, seconds = [], 0.0
        names.append(name)
        seconds += cost
    if names:
        groups.append((tuple(names), seconds))
    return groups


def critical_path(tasks: Iterable[Task]) -> dict[str, float]:
    """Seconds from the start of each task to the end of the longest chain that begins with it."""
    listed = list(tasks)
    after: dict[str, list[str]] = {task.result: [] for task in listed}
    for task in listed:
        for name in task.needs:
            after.get(name, []).append(task.result)
    lengths: dict[str, float] = {}
    for task in reversed(listed):  # a task comes after those it needs
        lengths[task.result] = task.seconds + max((lengths[name] for name in after[task.result]), default=0.0)
    return lengths
