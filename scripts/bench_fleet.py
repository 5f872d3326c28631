"""A fleet by simulation: 60 recipes x 200 cases on 8, 64 and 256 workers; tasks sleep as long as real ones took.

    python scripts/bench_fleet.py [--workers 64] [--seconds 90]      writes docs/bench/fleet-simulated.{json,png}

Graph, order, executor, scheduler and network protocol are the real ones; only the work is sleep. Durations are those of
docs/bench/fleet.json, a recorded run of tiny recipes: a case takes its recorded time for each billion active
parameters, a build its recorded time and 8 s for each billion parameters (float32 at 0.5 GB/s). For each number of
workers they are divided by what makes the run take `--seconds` at best. Overheads are not divided: they weigh that many
times as much here as they would. All workers live in one process and share its interpreter lock with scheduler and
client.

`ideal` is a bound that no schedule beats (`lower_bound`); `greedy` is the order of `runner.py` without any overhead.
"""

from __future__ import annotations

import heapq
import json
import logging
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import dask
import typer
from distributed import Client, LocalCluster, get_worker

from parity_tests.fixtures.fleet_harness import HARNESS
from qwen3vl_export.fleet.cluster import MEMORY, Cluster
from qwen3vl_export.fleet.graph import SHARD_SECONDS, Job, Task, critical_path, cut_into_shards, job_of, part_address
from qwen3vl_export.fleet.runner import Queue, run_tasks
from qwen3vl_export.fleet.tasks import Site, TaskOutcome
from qwen3vl_export.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
RECORDED = ROOT / "docs" / "bench" / "fleet.json"
WRITTEN = ROOT / "docs" / "bench" / "fleet-simulated.json"
SIZES = {"2b": (2, 2), "4b": (4, 4), "8b": (8, 8), "32b": (32, 32), "30b-a3b": (30, 3), "235b-a22b": (235, 22)}
VARIANTS = ("instruct", "thinking")
PRECISIONS = ("float32", "bfloat16", "float16", "int8", "int4")
CASES = 200
BUILD_SECONDS = 8.0  # for each billion parameters
# What a worker does in a process of its own, on its own core: 256 of them in this one would measure their profilers.
QUIET = {"distributed.worker.profile.enabled": False, "distributed.admin.system-monitor.interval": "60s"}
SITE = Site("nowhere", HARNESS, {}, "")


def fleet(recorded: Mapping[str, Any]) -> list[Task]:
    """The tasks of the whole family, with the durations of published sizes."""
    units = [seconds for seconds in recorded["unit_seconds"].values() if seconds > 0]
    builds, merges = recorded["seconds"]["build"], recorded["seconds"]["merge"]
    tasks: list[Task] = []
    for size, (parameters, active) in SIZES.items():
        for variant in VARIANTS:
            for precision in PRECISIONS:
                job = named(f"{size}-{variant}-{precision}")
                cases = {f"case-{index}": units[index % len(units)] * active for index in range(CASES)}
                built = statistics.median(builds) + BUILD_SECONDS * parameters
                parts = [
                    Task("verify", job, part_address(job, names), (job.artifact,), names, 1, seconds)
                    for names, seconds in cut_into_shards(cases, 1.0, SHARD_SECONDS)
                ]
                results = tuple(part.result for part in parts)
                merge = Task("merge", job, job.report, (job.artifact, *results), (), 1, statistics.median(merges))
                tasks += [Task("build", job, job.artifact, (), (), 1, built), *parts, merge]
    return tasks


def named(name: str) -> Job:
    return job_of(load_recipe("tiny").model_copy(update={"name": name}), "standard", None, HARNESS)


def sleep(task: Task, site: Site) -> TaskOutcome:
    started, clock = time.time(), time.perf_counter()
    time.sleep(task.seconds)
    return TaskOutcome(task.result, "made", "", get_worker().address, started, time.perf_counter() - clock)


def greedy(tasks: Sequence[Task], workers: int) -> float:
    """The makespan of the same order if nothing but the tasks took time."""
    queue, present = Queue(tasks), {str(index): 1 for index in range(workers)}
    clock, running = 0.0, list[tuple[float, str]]()
    while queue.ready or running:
        for task in queue.take_startable([queue.tasks[name] for _, name in running], present):
            heapq.heappush(running, (clock + task.seconds, task.result))
        clock, name = heapq.heappop(running)
        queue.done(name)
    return clock


def lower_bound(tasks: Sequence[Task], workers: int) -> tuple[float, str]:
    """What no schedule can beat, and why: all work, or the work that cannot begin before some build has ended."""
    builds = {task.result: task.seconds for task in tasks if task.kind == "build"}
    later = [(builds[task.needs[0]], task.seconds) for task in tasks if task.kind == "verify"]
    bounds = {"all work": sum(task.seconds for task in tasks) / workers}
    for start in set(builds.values()):
        waiting = sum(seconds for released, seconds in later if released >= start)
        bounds[f"what waits for builds of {start:.0f} s"] = start + waiting / workers
    bounds["the longest chain"] = max(critical_path(tasks).values())
    reason = max(bounds, key=lambda name: bounds[name])
    return bounds[reason], reason


def simulate(whole: Sequence[Task], workers: int, seconds: float) -> dict[str, Any]:
    bound, limit = lower_bound(whole, workers)
    scale = bound / seconds
    tasks = [replace(task, seconds=task.seconds / scale) for task in whole]
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=False,
            protocol="tcp://",
            dashboard_address=None,
            memory_limit=0,
            resources={MEMORY: 1},
        ) as made,
        Client(made) as client,
    ):
        client.wait_for_workers(workers)
        executor = Cluster(client, SITE, lambda event, **values: None, None, work=sleep)
        outcomes: dict[str, TaskOutcome] = {}
        cpu, start = time.process_time(), time.perf_counter()
        run_tasks(tasks, executor, lambda event, **values: None, outcomes)
        makespan, spent = time.perf_counter() - start, time.process_time() - cpu
    assert len(outcomes) == len(tasks)
    ideal = bound / scale
    best = greedy(tasks, workers)
    gaps = list(idle_between(outcomes))
    return {
        "workers": workers,
        "tasks": len(tasks),
        "durations_divided_by": round(scale, 1),
        "ideal": round(ideal, 3),
        "greedy": round(best, 3),
        "makespan": round(makespan, 3),
        "over_ideal": round(makespan / ideal - 1, 4),
        "scheduling_overhead": round(makespan / best - 1, 4),
        "idle_between_tasks_median": round(statistics.median(gaps), 4),
        "cpu_ms_per_task": round(1000 * spent / len(tasks), 2),
        "busy": round(sum(one.seconds for one in outcomes.values()) / (workers * makespan), 4),
        "limit": limit,
    }


def idle_between(outcomes: Mapping[str, TaskOutcome]) -> Iterator[float]:
    """Seconds between the end of a task and the start of the next one on its worker."""
    by_worker: defaultdict[str, list[TaskOutcome]] = defaultdict(list)
    for outcome in outcomes.values():
        by_worker[outcome.worker].append(outcome)
    for own in by_worker.values():
        own.sort(key=lambda outcome: outcome.started)
        for one, following in pairwise(own):
            yield following.started - one.started - one.seconds


def draw(values: Mapping[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = values["runs"]
    figure, axes = pyplot.subplots(figsize=(7.2, 3.6), layout="constrained")
    places = range(len(runs))
    for offset, key, colour in ((-0.27, "ideal", "#a9cbee"), (0, "greedy", "#548fd2"), (0.27, "makespan", "#d9730d")):
        bars = axes.bar([place + offset for place in places], [run[key] for run in runs], 0.25, label=key, color=colour)
        axes.bar_label(bars, fmt="%.1f", fontsize=8)
    axes.set_xticks(places, [f"{run['workers']} workers\n{run['scheduling_overhead']:+.1%} overhead" for run in runs])
    axes.set_ylabel("seconds, scaled")
    axes.set_title(f"{values['recipes']} recipes x {CASES} cases, {runs[0]['tasks']:,} tasks", loc="left", fontsize=10)
    figure.legend(loc="outside lower center", frameon=False, ncols=3, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=140)


def main(
    workers: Annotated[list[int], typer.Option(help="How many workers; can be repeated.")] = [8, 64, 256],  # noqa: B006
    seconds: Annotated[float, typer.Option(help="How long each run should take at best.")] = 90.0,
    out: Annotated[Path, typer.Option(help="Where the figures go; the picture beside it.")] = WRITTEN,
) -> None:
    """Simulate the fleet on each number of workers."""
    logging.getLogger("distributed").setLevel(logging.ERROR)
    dask.config.set(QUIET)
    tasks = fleet(json.loads(RECORDED.read_text("utf-8")))
    values: dict[str, Any] = {
        "recipes": len(SIZES) * len(VARIANTS) * len(PRECISIONS),
        "cases": CASES,
        "hours_of_work": round(sum(task.seconds for task in tasks) / 3600, 1),
        "versions": {name: version(name) for name in ("dask", "distributed")} | {"python": platform.python_version()},
        "cores": os.cpu_count(),
    }
    kept = json.loads(out.read_text("utf-8"))["runs"] if out.is_file() else []
    values["runs"] = [run for run in kept if run["workers"] not in workers]  # measured before, on other numbers
    for count in workers:
        values["runs"].append(simulate(tasks, count, seconds))
        typer.echo(json.dumps(values["runs"][-1]))
    values["runs"].sort(key=lambda run: run["workers"])
    out.write_text(json.dumps(values, indent=1) + "\n", "utf-8")
    draw(values, out.with_suffix(".png"))


if __name__ == "__main__":
    typer.run(main)
