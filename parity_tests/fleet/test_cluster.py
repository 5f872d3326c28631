"""Fleets on scheduler and workers as separate processes on loopback: what they make, and what survives.

The recipes export one small graph and the harness is a stand-in whose units sleep: what is tested is who does what when
somebody dies. The same with six whole recipes and the real harness is recorded by scripts/record_fleet.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from parity_tests.fixtures.fleet_harness import HARNESS
from parity_tests.fixtures.fleet_processes import MEMORY, Processes, cluster, wait_until
from parity_tests.fixtures.paths import ROOT
from qwen3vl_export.errors import FleetError
from qwen3vl_export.exporter.pipeline import build
from qwen3vl_export.fleet import account, fleet
from qwen3vl_export.fleet import cluster as cluster_module
from qwen3vl_export.fleet.account import JobStatus
from qwen3vl_export.fleet.fleet import FleetOptions
from qwen3vl_export.fleet.places import INCOMING
from qwen3vl_export.manifest import MANIFEST
from qwen3vl_export.recipe import load_recipe

NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Recipes of one graph, each in another precision."""
    folder = tmp_path_factory.mktemp("recipes")
    found = {}
    for name, dtype in zip(NAMES, ("float32", "float16", "bfloat16"), strict=True):
        path = folder / f"{name}.yaml"
        parent = (ROOT / "recipes" / "tiny.yaml").as_posix()
        path.write_text(f"extends: {parent}\ngraphs: [embed_tokens]\ndtype: {dtype}\nparity: {{held_out: false}}\n")
        found[name] = str(path)
    return found


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    with cluster(tmp_path_factory.mktemp("cluster"), "w0", "w1", "w2") as made:
        yield made


MakeOptions = Callable[..., FleetOptions]


@dataclass(frozen=True)
class First:
    """The first fleet, which starts with an empty store: its options and the statuses at its end."""

    options: FleetOptions
    found: list[JobStatus]


@pytest.fixture(scope="module")
def first(recipes: dict[str, str], processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> First:
    folder = tmp_path_factory.mktemp("first")
    log = folder / "log.jsonl"
    options = FleetOptions(list(recipes.values()), str(folder / "store"), HARNESS, processes.address, "quick", log=log)
    return First(options, fleet.run(options))


@pytest.fixture
def make_options(first: First, recipes: dict[str, str], processes: Processes, tmp_path: Path) -> MakeOptions:
    """What a test asks for, with a copy of the first fleet's store: estimated and built; `unbuilt` takes that back."""

    def make(*names: str, unbuilt: bool = False, **options: Any) -> FleetOptions:
        store = tmp_path / "store"
        if not store.exists():
            shutil.copytree(first.options.store_url, store)
        if unbuilt:
            shutil.rmtree(store / "artifacts")
        paths = [recipes[name] for name in names or NAMES]
        options = {"scheduler": processes.address, "matrix": "full", **options}
        return FleetOptions(paths, str(store), HARNESS, log=tmp_path / "log.jsonl", **options)

    return make


def events(options: FleetOptions, *names: str) -> list[dict[str, Any]]:
    assert options.log is not None
    lines = options.log.read_text("utf-8").splitlines() if options.log.is_file() else []
    return [event for event in map(json.loads, lines) if event["event"] in names]


def made(options: FleetOptions) -> list[str]:
    """What was really made, not found."""
    return [event["task"] for event in events(options, "task-ended") if event["status"] == "made"]


class Running:
    """A fleet that runs in a thread, while the test does harm."""

    def __init__(self, options: FleetOptions) -> None:
        self.found: list[JobStatus] = []
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(options,))
        self.thread.start()

    def _run(self, options: FleetOptions) -> None:
        try:
            self.found = fleet.run(options)
        except BaseException as error:
            self.error = error

    def wait(self) -> list[JobStatus]:
        self.thread.join(120)
        assert not self.thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.found


def assert_whole(options: FleetOptions) -> None:
    """Nothing half-written: every artifact in the store is as its manifest says, and nothing is left over."""
    store = Path(options.store_url)
    for path in (store / "artifacts").iterdir():
        files = json.loads((path / MANIFEST).read_text("utf-8"))["files"]
        assert {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()} == {*files, MANIFEST}
        assert all((path / name).stat().st_size == record["bytes"] for name, record in files.items())
    assert not [path for path in store.rglob("*") if path.is_file() and path.stat().st_size == 0]


def test_a_fleet_makes_what_single_builds_make(first: First, recipes: dict[str, str], tmp_path: Path) -> None:
    assert all(one.passed for one in first.found)
    for name, one in zip(NAMES, first.found, strict=True):
        single = build(load_recipe(recipes[name]), out=tmp_path / name, log=lambda line: None)
        compared = subprocess.run(
            ["diff", "-r", single, Path(first.options.store_url) / one.job.artifact], check=False, capture_output=True
        )
        assert (compared.returncode, compared.stdout) == (0, b"")
    assert len({event["worker"] for event in events(first.options, "task-ended")}) > 1
    assert_whole(first.options)


def test_a_second_run_makes_nothing_and_another_matrix_builds_nothing(
    make_options: MakeOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    again = make_options(matrix="quick")
    found = fleet.run(again)
    assert all(one.passed for one in found)
    assert events(again, "task-started") == []
    capsys.readouterr()
    account.show(found, [])
    assert "all 3 built, verified and passed" in capsys.readouterr().out
    other = make_options(matrix="standard")
    assert all(one.passed for one in fleet.run(other))
    assert {event["kind"] for event in events(other, "task-started")} == {"verify", "merge"}


def test_two_fleets_on_one_store_never_clobber_each_other(make_options: MakeOptions, tmp_path: Path) -> None:
    wanted = make_options(matrix="standard", unbuilt=True)
    running = [Running(wanted), Running(replace(wanted, log=tmp_path / "other.jsonl"))]
    for one in running:
        assert all(standing.passed for standing in one.wait())
    assert_whole(wanted)
    for folder in ("artifacts", "reports"):
        assert len(list((Path(wanted.store_url) / folder).glob("one-*"))) <= 2  # a report of each matrix


def test_a_worker_killed_in_a_build_and_one_in_a_verification(make_options: MakeOptions, processes: Processes) -> None:
    wanted = make_options("one", unbuilt=True)
    running = Running(wanted)
    victim = wait_until(lambda: processes.working("build-"), "build under way")
    processes.kill(victim)
    processes.start_worker(victim)
    victim = wait_until(lambda: processes.working("verify-"), "verification under way")
    processes.kill(victim)
    assert all(one.passed for one in running.wait())
    processes.start_worker(victim)
    processes.wait_for_workers()
    lost = [name for event in events(wanted, "workers") for name in event["lost"]]
    assert len(lost) >= 1
    assert_whole(wanted)


def test_a_scheduler_that_is_restarted_is_found_again(make_options: MakeOptions, processes: Processes) -> None:
    wanted = make_options()
    running = Running(wanted)
    wait_until(lambda: processes.working("verify-"), "verification under way")
    processes.restart_scheduler()
    assert all(one.passed for one in running.wait())
    assert [event["event"] for event in events(wanted, "scheduler-lost", "scheduler-back")][:2] == [
        "scheduler-lost",
        "scheduler-back",
    ]
    assert len(made(wanted)) == len(set(made(wanted)))
    processes.wait_for_workers()


def test_a_store_that_goes_away_is_waited_for(make_options: MakeOptions, processes: Processes) -> None:
    wanted = make_options("one")
    running = Running(wanted)
    wait_until(lambda: processes.working("verify-"), "verification under way")
    store = Path(wanted.store_url)
    away = store.with_name("away")
    store.rename(away)
    time.sleep(3)
    assert running.thread.is_alive()
    away.rename(store)
    assert all(one.passed for one in running.wait())
    notices = [notice for event in events(wanted, "task-ended") for notice in event.get("notices", ())]
    assert any("cannot be reached" in notice for notice in notices)
    assert any("is back" in notice for notice in notices)


def test_a_store_that_stays_away_ends_the_run_and_a_rerun_makes_only_the_rest(
    make_options: MakeOptions, processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = make_options("one", patience=2.0)
    running = Running(wanted)
    wait_until(lambda: processes.working("verify-"), "verification under way")
    store = Path(wanted.store_url)
    away = store.with_name("away")
    store.rename(away)
    with pytest.raises(FleetError, match="cannot be reached for 2 s"):
        running.wait()
    away.rename(store)
    before = made(wanted)
    assert all(one.passed for one in fleet.run(wanted))
    assert not set(made(wanted)[len(before) :]) & set(before)
    assert_whole(wanted)


def test_a_full_disk_on_one_worker_moves_its_work(make_options: MakeOptions, processes: Processes) -> None:
    processes.kill("w1")
    processes.kill("w2")
    processes.start_worker("w1", small_disk=True)
    processes.wait_for_workers()
    wanted = make_options(matrix="quick", unbuilt=True)
    try:
        assert all(one.passed for one in fleet.run(wanted))
    finally:
        processes.kill("w1")
        processes.start_worker("w1")
        processes.start_worker("w2")
        processes.wait_for_workers()
    moves = events(wanted, "task-moved")
    assert moves
    assert all(event["kind"] == "build" and "disk full on tcp://" in event["message"] for event in moves)
    assert_whole(wanted)


def test_large_builds_stay_away_from_a_small_worker(make_options: MakeOptions, processes: Processes) -> None:
    processes.kill("w1")
    processes.start_worker("w1", memory=3e9)
    processes.wait_for_workers()
    wanted = make_options(matrix="quick", unbuilt=True)
    for path in (Path(wanted.store_url) / "estimates").iterdir():
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"build_memory": int(9e9)}), "utf-8")
    try:
        with processes.client() as client:
            described = client.sync(client.scheduler.identity, n_workers=-1)
            [small] = [address for address, info in described["workers"].items() if info["name"] == "w1"]
        assert all(one.passed for one in fleet.run(wanted))
    finally:
        processes.kill("w1")
        processes.start_worker("w1")
        processes.wait_for_workers()
    builders = {event["worker"] for event in events(wanted, "task-ended") if event["kind"] == "build"}
    assert builders
    assert small not in builders


def test_a_failure_is_kept_told_and_made_again_alone(
    make_options: MakeOptions,
    recipes: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Calibration prompts with a picture that is missing: the estimate works, the build fails."""
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "prompts.jsonl").write_text('{"images": ["missing.png"], "ask": "?", "answer": "."}\n')
    broken = tmp_path / "broken.yaml"
    broken.write_text(
        f"extends: {recipes['one']}\ngraphs: [decoder_model_merged]\ncalibration: {{source: ./prompts}}\n"
        "quantization: {decoder_model_merged: {method: int4, block_size: 32, algorithm: gptq}}\n"
    )
    wanted = make_options("one")
    both = FleetOptions(
        [*wanted.recipes, str(broken)], wanted.store_url, HARNESS, wanted.scheduler, "quick", log=wanted.log
    )
    good, bad = fleet.run(both)
    assert good.passed
    assert not bad.passed
    again = ["qwen3vl-export", "fleet", "run", "{recipes}", "--store", both.store_url]
    capsys.readouterr()
    account.show(fleet.status(both), again)
    shown = capsys.readouterr().out
    assert "failed: build broken:" in shown
    assert "missing.png" in shown
    assert f"qwen3vl-export fleet run {broken} --store {both.store_url}" in shown
    count = len(made(both))
    fleet.run(both)
    assert made(both)[count:] == []  # nothing of the good one is made again


def test_bad_clusters_are_refused_in_one_line(
    make_options: MakeOptions, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        FleetError, match=r"tcp://127\.0\.0\.1:9: no scheduler answers there .*Start one: dask scheduler"
    ):
        fleet.run(make_options(scheduler="tcp://127.0.0.1:9"))
    with monkeypatch.context() as patch:
        here = fleet.tools()
        patch.setattr(fleet, "tools", lambda: {**here, "onnx": "0.1"})
        with pytest.raises(
            FleetError, match=r"worker tcp.*: onnx is .* there and 0\.1 here: results would not be comp"
        ):
            fleet.run(make_options())
    with monkeypatch.context() as patch:
        patch.setattr("qwen3vl_export.fleet.graph.MERGING_MEMORY", int(2 * MEMORY))
        with pytest.raises(FleetError, match=r"merge one: needs about .* of memory, the largest worker has 14\.9 GB"):
            fleet.run(make_options())
    processes.kill("w2")
    processes.start_worker("w2", threads=2)
    processes.wait_for_workers()
    try:
        with pytest.raises(FleetError, match="runs 2 tasks in one process"):
            fleet.run(make_options())
    finally:
        processes.kill("w2")
        processes.start_worker("w2")
        processes.wait_for_workers()


def test_a_cluster_of_this_machine_fits_its_cores_and_memory(
    make_options: MakeOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = make_options("one", matrix="standard", scheduler=None)
    monkeypatch.setattr(cluster_module, "machine_memory", lambda: int(5 * 2.1e9))  # 8.4e9 to serve, 4 workers of 2.1e9
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert all(one.passed for one in fleet.run(wanted))
    assert "2 workers; dashboard: http://127.0.0.1" in capsys.readouterr().out
    [started] = events(wanted, "run-started")
    assert started["workers"] == 2


def test_without_dask_the_same_tasks_run_here(
    make_options: MakeOptions, recipes: dict[str, str], tmp_path: Path
) -> None:
    store = make_options("one", unbuilt=True).store_url
    code = f"""
import sys
sys.modules["dask"] = sys.modules["distributed"] = None
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name in ("dask", "distributed") else found(name, *a)
from parity_tests.fixtures.fleet_harness import HARNESS
from qwen3vl_export.fleet import fleet
[one] = fleet.run(fleet.FleetOptions([{recipes["one"]!r}], {store!r}, HARNESS, matrix="quick"))
assert one.passed
assert not any(name.startswith(("dask.", "distributed.")) for name in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "build one" in done.stdout
    assert (Path(store) / "zoo.html").is_file()
    assert not list((Path(store) / INCOMING).iterdir())
