"""Jobs and tasks as data: what they are called, what they need, and in which order they are taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parity_tests.fixtures.fleet_harness import HARNESS
from parity_tests.harness import shards as harness
from parity_tests.harness.plan import Subject, plan
from qwen3vl_export.errors import CheckpointError, FleetError, RecipeError
from qwen3vl_export.fleet import address, graph
from qwen3vl_export.fleet.estimate import Estimate
from qwen3vl_export.fleet.graph import Job, Task, cut_into_shards, jobs_of, target_of, tasks_of
from qwen3vl_export.fleet.runner import check_memory, run_tasks
from qwen3vl_export.fleet.tasks import TaskOutcome
from qwen3vl_export.recipe import load_recipe

GB = 1 << 30
ESTIMATE = Estimate(
    size=1000, build_memory=4 * GB, build_seconds=30, verify_memory=2 * GB, unit_seconds=10, opening_seconds=1
)


def run(tasks: Sequence[Task], executor: Scripted, emit: Any = None) -> dict[str, TaskOutcome]:
    outcomes: dict[str, TaskOutcome] = {}
    run_tasks(tasks, executor, emit or silent, outcomes)
    return outcomes


def silent(event: str, **values: Any) -> None:
    pass


@pytest.fixture
def job() -> Job:
    return jobs_of(["tiny"], "quick", None, HARNESS)[0]


def test_an_address_changes_with_everything_it_depends_on(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def addresses(recipe: str = "tiny", matrix: str = "quick") -> tuple[str, str]:
        found = jobs_of([recipe], matrix, None, HARNESS)[0]
        return found.artifact, found.report

    before = addresses()
    assert before == addresses()
    assert addresses(matrix="standard")[0] == before[0]  # the matrix changes no artifact
    assert addresses(matrix="standard")[1] != before[1]
    assert addresses("tiny-int8") != before
    with monkeypatch.context() as patch:
        patch.setattr(graph, "revision_of", lambda recipe: "another")
        assert all(a != b for a, b in zip(addresses(), before, strict=True))
    with monkeypatch.context() as patch:
        patch.setattr(graph, "tools", lambda: {**address.tools(), "torch": "9"})
        assert all(a != b for a, b in zip(addresses(), before, strict=True))
    other = replace(HARNESS, version=lambda: "another")
    assert jobs_of(["tiny"], "quick", None, other)[0].artifact == before[0]
    assert jobs_of(["tiny"], "quick", None, other)[0].report != before[1]


def test_a_local_checkpoint_is_known_by_its_bytes(tmp_path: Path) -> None:
    recipe = load_recipe("tiny")
    first = address.revision_of(recipe)
    assert first.startswith("sha256:")
    (tmp_path / "model.safetensors").write_bytes(b"x")
    values = recipe.model_dump() | {"checkpoint": {"source": str(tmp_path)}}
    other = type(recipe).model_validate(values)
    assert address.revision_of(other) != first
    with pytest.raises(CheckpointError, match="no such directory"):
        address.revision_of(type(recipe).model_validate(values | {"checkpoint": {"source": str(tmp_path / "no")}}))


def test_adapters_are_known_by_their_bytes_and_order(tmp_path: Path) -> None:
    recipe = load_recipe("tiny")
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").write_text(name)
    assert recipe.checkpoint_dir is not None
    checkpoint = {"source": str(recipe.checkpoint_dir.absolute())}
    lists = [[], ["a"], ["b"], ["a", "b"], ["b", "a"]]
    variants = [checkpoint | {"adapters": tuple(str(tmp_path / name) for name in names)} for names in lists]
    revisions = {
        address.revision_of(type(recipe).model_validate(recipe.model_dump() | {"checkpoint": variant}))
        for variant in variants
    }
    assert len(revisions) == len(lists) and address.revision_of(recipe) in revisions


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"tinny: no recipe of that name\. Did you mean tiny\?"):
        jobs_of(["tiny", "tinny"], None, None, HARNESS)


def test_two_recipes_of_one_name_are_refused(tmp_path: Path) -> None:
    mine = tmp_path / "tiny.yaml"
    mine.write_text(f"extends: {Path('recipes/tiny.yaml').resolve()}\ntarget: portable\n")
    with pytest.raises(FleetError, match="two recipes are called tiny"):
        jobs_of(["tiny", str(mine)], None, None, HARNESS)


def test_a_job_falls_into_build_shards_merge_and_publication(job: Job) -> None:
    tasks = tasks_of(replace(job, target="hf://me/tiny"), ESTIMATE)
    assert [task.kind for task in tasks] == ["build", "verify", "verify", "verify", "verify", "merge", "publish"]
    build, *parts, merge, published = tasks
    assert all(part.needs == (build.result,) for part in parts)
    assert merge.parts == tuple(part.result for part in parts)
    assert set(merge.needs) == {build.result, *merge.parts}
    assert published.needs == (merge.result,)
    assert len({task.result for task in tasks}) == len(tasks)


@pytest.mark.parametrize("seconds, count", [(0.1, 1), (10.0, 4), (60.0, 21), (500.0, 21)])
def test_shards_hold_every_unit_once_in_order(seconds: float, count: int) -> None:
    units = {f"case-{index}": 1.0 for index in range(21)}
    found = cut_into_shards(units, seconds, 60.0)
    assert [name for names, _ in found for name in names] == list(units)
    assert len(found) == count
    assert sum(cost for _, cost in found) == pytest.approx(21 * seconds)


def test_a_target_gets_the_name_and_workers_get_whole_paths() -> None:
    assert target_of("hf://me", "tiny") == "hf://me/tiny"
    assert target_of("hf://me/onnx-{name}", "tiny") == "hf://me/onnx-tiny"
    assert target_of("out", "tiny") == str(Path("out").absolute() / "tiny")


def test_the_units_of_the_harness_cover_its_plan() -> None:
    recipe = load_recipe("tiny-int8")
    checks = plan("standard", Subject.of_recipe(recipe)).checks
    units = harness.units(recipe, "standard")
    assert {harness.unit_of(check) for check in checks} == set(units)
    assert {"exam", "weights[vision_encoder]", "square-96x96"} <= set(units)
    assert units["exam"] > units["square-96x96"] == 1.0


class Scripted:
    """Workers that do at once what the test says."""

    dashboard: str | None = None

    def __init__(self, workers: Mapping[str, int], ends: Any = lambda task, worker: "made") -> None:
        self.present = dict(workers)
        self.ends = ends
        self.flying: list[tuple[Task, frozenset[str]]] = []
        self.order: list[str] = []
        self.most = 0

    def workers(self) -> Mapping[str, int]:
        return self.present

    def submit(self, task: Task, avoid: frozenset[str]) -> None:
        self.flying.append((task, avoid))
        self.order.append(task.label)
        self.most = max(self.most, len(self.flying))
        needs = sorted((task.memory for task, _ in self.flying), reverse=True)
        assert all(a <= b for a, b in zip(needs, sorted(self.present.values(), reverse=True), strict=False))

    def ended(self) -> Sequence[TaskOutcome]:
        task, avoid = self.flying.pop(0)
        worker = next(name for name, room in self.present.items() if name not in avoid and room >= task.memory)
        return [TaskOutcome(task.result, self.ends(task, worker), "because", worker)]

    def close(self) -> None:
        pass


def jobs(*names: str) -> list[Job]:
    return jobs_of(names, "quick", None, HARNESS)


def test_long_chains_go_first_and_no_worker_idles() -> None:
    short, long = jobs("tiny", "tiny-int8")
    tasks = [*tasks_of(short, ESTIMATE), *tasks_of(long, replace(ESTIMATE, build_seconds=300))]
    executor = Scripted({f"w{index}": 8 * GB for index in range(3)})
    outcomes = run(tasks, executor)
    assert all(outcome.succeeded for outcome in outcomes.values())
    assert len(outcomes) == len(tasks)
    assert executor.order[0] == "build tiny-int8"
    assert executor.most == 3
    assert executor.order.index("merge tiny") > max(
        i for i, label in enumerate(executor.order) if "verify tiny (" in label
    )


def test_two_large_tasks_never_share_the_one_large_worker() -> None:
    tasks = [
        task for job in jobs("tiny", "tiny-int8") for task in tasks_of(job, replace(ESTIMATE, build_memory=9 * GB))
    ]
    executor = Scripted({"large": 10 * GB, "small": 3 * GB})  # `Scripted.submit` holds them against each other
    assert all(outcome.succeeded for outcome in run(tasks, executor).values())
    assert executor.order[:2] == ["build tiny", "build tiny-int8"] or executor.order[0].startswith("build")
    assert executor.most == 2  # shards go to the small one meanwhile


def test_what_a_worker_cannot_do_goes_to_another() -> None:
    moved: list[str] = []

    def emit(event: str, **values: Any) -> None:
        if event == "task-moved":
            moved.append(values["worker"])

    executor = Scripted({"full": 8 * GB, "good": 8 * GB}, lambda task, worker: "unable" if worker == "full" else "made")
    outcomes = run(tasks_of(jobs("tiny")[0], ESTIMATE), executor, emit)
    assert {outcome.worker for outcome in outcomes.values()} == {"good"}
    assert set(moved) == {"full"}


def test_a_failure_stops_what_needs_it_and_nothing_else() -> None:
    tasks = [task for job in jobs("tiny", "tiny-int8") for task in tasks_of(job, ESTIMATE)]

    def ends(task: Task, worker: str) -> str:
        return "failed" if task.label == "build tiny" else "made"

    outcomes = run(tasks, Scripted({"w": 8 * GB}, ends))
    made = {task.label for task in tasks if task.result in outcomes and outcomes[task.result].succeeded}
    assert "merge tiny-int8" in made
    assert not any("tiny" in label and "int8" not in label for label in made)


def test_what_no_worker_is_able_to_do_is_given_up() -> None:
    executor = Scripted({"a": 8 * GB, "b": 8 * GB}, lambda task, worker: "unable")
    outcomes = run(tasks_of(jobs("tiny")[0], ESTIMATE), executor)
    assert [outcome.status for outcome in outcomes.values()] == ["unable"]
    assert executor.order == ["build tiny", "build tiny"]


def test_a_task_larger_than_every_worker_is_refused(job: Job) -> None:
    tasks = tasks_of(job, replace(ESTIMATE, build_memory=312 * GB))
    with pytest.raises(FleetError, match=r"build tiny: needs about 312.0 GB of memory, the largest worker has 64.0 GB"):
        check_memory(tasks, {"a": 64 * GB, "b": 8 * GB})
    check_memory(tasks, {"a": 400 * GB})
