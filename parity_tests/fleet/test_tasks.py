"""What a task does with its result, and how it ends when something is in its way."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from parity_tests.fixtures.fleet_harness import HARNESS
from parity_tests.fixtures.proven import prove
from qwen3vl_export.artifact import JUNIT, PARITY
from qwen3vl_export.errors import SpaceError
from qwen3vl_export.fleet import address, tasks
from qwen3vl_export.fleet.estimate import Estimate
from qwen3vl_export.fleet.graph import Job, Task, estimate_task, jobs_of, tasks_of
from qwen3vl_export.fleet.store import Store, open_store
from qwen3vl_export.fleet.tasks import Site, TaskOutcome, perform
from qwen3vl_export.manifest import MANIFEST

ESTIMATE = Estimate(size=1, build_memory=1, build_seconds=1, verify_memory=1, unit_seconds=1, opening_seconds=1)


@dataclass
class Bench:
    """A store, and tasks carried out on it."""

    store: Store
    site: Site
    scratch: Path
    job: Job

    def perform(self, task: Task) -> TaskOutcome:
        return perform(task, self.site, self.scratch, "w0")

    def task(self, kind: str) -> Task:
        return next(task for task in tasks_of(self.job, ESTIMATE) if task.kind == kind)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    store = open_store(str(tmp_path / "store"))
    site = Site(store.url, HARNESS, address.tools(), HARNESS.version(), patience=1.0)
    target = str(tmp_path / "published")
    return Bench(store, site, tmp_path / "scratch", jobs_of(["tiny"], "quick", target, HARNESS)[0])


@pytest.fixture(scope="module")
def proven(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prove(tiny_artifact, tmp_path_factory.mktemp("proven") / "tiny")


def stored(bench: Bench, proven: Path, tmp_path: Path) -> None:
    """A proven artifact as a fleet leaves it: the artifact and its report apart."""
    artifact, report = tmp_path / "artifact", tmp_path / "report"
    shutil.copytree(proven, artifact)
    report.mkdir()
    for name in (PARITY, JUNIT, "parity.html"):
        if (artifact / name).is_file():
            (artifact / name).rename(report / name)
    (report / "summary.json").write_text("{}", "utf-8")
    bench.store.put_tree(bench.job.artifact, artifact, MANIFEST)
    bench.store.put_tree(bench.job.report, report, PARITY)


def test_a_proven_artifact_is_published_once(bench: Bench, proven: Path, tmp_path: Path) -> None:
    stored(bench, proven, tmp_path)
    task = bench.task("publish")
    assert bench.perform(task).status == "made"
    published = tmp_path / "published" / "tiny"
    assert {PARITY, MANIFEST, "README.md", "provenance.intoto.json"} <= {path.name for path in published.iterdir()}
    assert not (published / "summary.json").exists()
    assert bench.perform(task).status == "there"
    (Path(bench.store.url) / task.result).unlink()  # published, and died before saying so
    assert bench.perform(task).status == "made"
    assert not list(bench.scratch.iterdir())


def test_somebody_elses_directory_is_not_replaced(bench: Bench, proven: Path, tmp_path: Path) -> None:
    stored(bench, proven, tmp_path)
    (tmp_path / "published" / "tiny").mkdir(parents=True)
    (tmp_path / "published" / "tiny" / "thesis.txt").write_text("mine")
    outcome = bench.perform(bench.task("publish"))
    assert outcome.status == "failed"
    assert "not empty" in outcome.message
    assert (tmp_path / "published" / "tiny" / "thesis.txt").read_text() == "mine"


def add_a_file(published: Path) -> str:
    (published / "thesis.txt").write_text("mine")
    return "holds thesis.txt, which is not part of the artifact there"


def make_it_another(published: Path) -> str:
    manifest = published / MANIFEST
    manifest.write_text(manifest.read_text("utf-8") + "\n", "utf-8")
    return "another artifact is there. Move it elsewhere, or choose another --publish"


@pytest.mark.parametrize("change", [add_a_file, make_it_another])
def test_a_publication_that_was_changed_is_not_replaced(
    bench: Bench, proven: Path, tmp_path: Path, change: Callable[[Path], str]
) -> None:
    stored(bench, proven, tmp_path)
    published = tmp_path / "published" / "tiny"
    shutil.copytree(proven, published)
    expected = change(published)
    before = {path: path.read_bytes() for path in published.rglob("*") if path.is_file()}
    outcome = bench.perform(bench.task("publish"))
    assert outcome.status == "failed" and expected in outcome.message and "--force" not in outcome.message
    assert {path: path.read_bytes() for path in published.rglob("*") if path.is_file()} == before


def test_what_did_not_pass_is_not_published(bench: Bench, proven: Path, tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt"
    shutil.copytree(proven, spoilt)
    evidence = json.loads((spoilt / PARITY).read_text("utf-8"))
    (spoilt / PARITY).write_text(json.dumps(evidence | {"passed": False}), "utf-8")
    stored(bench, spoilt, tmp_path)
    outcome = bench.perform(bench.task("publish"))
    assert outcome.status == "failed"
    assert not (tmp_path / "published").exists()


@pytest.mark.parametrize(
    "error, status, message",
    [
        (OSError(errno.ENOSPC, "No space left on device"), "unable", "disk full on w0"),
        (OSError(errno.EFBIG, "File too large"), "unable", "disk full on w0"),
        (SpaceError("/scratch: the artifact takes 9 bytes, 1 are free"), "unable", "disk full on w0: /scratch"),
        (RuntimeError("Error while serializing: I/O error: (os error 28)"), "unable", "disk full on w0"),
        (MemoryError(), "unable", "out of memory on w0"),
        (OSError(errno.EIO, "Input/output error"), "failed", "Input/output error"),
        (KeyError("onnx"), "failed", "KeyError: 'onnx'"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_a_machine_that_cannot_is_told_from_a_task_that_fails(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception, status: str, message: str
) -> None:
    def fail(*arguments: object) -> Estimate:
        raise error

    monkeypatch.setattr(tasks, "estimate", fail)
    outcome = bench.perform(estimate_task(bench.job))
    assert (outcome.status, message in outcome.message) == (status, True), outcome.message
    assert bool(outcome.trace) == (status == "failed")
    assert not list(bench.scratch.iterdir())


def test_a_process_of_other_versions_does_nothing(bench: Bench) -> None:
    bench.site = replace(bench.site, tools={**bench.site.tools, "onnx": "0.1"})
    outcome = bench.perform(estimate_task(bench.job))
    assert outcome.status == "unable"
    assert "onnx is" in outcome.message
    assert "and 0.1 here" in outcome.message
    assert not bench.store.names("estimates")


def test_a_checkpoint_that_changed_since_the_plan_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(recipe: object, out: Path, log: object) -> Path:
        out.mkdir()
        (out / MANIFEST).write_text(json.dumps({"checkpoint": {"revision": "f" * 40}}), "utf-8")
        return out

    monkeypatch.setattr("qwen3vl_export.exporter.pipeline.build", build)
    outcome = bench.perform(bench.task("build"))
    assert outcome.status == "failed"
    assert "was planned. Pin it: qwen3vl-export recipes pin" in outcome.message
    assert not bench.store.names("artifacts")


def test_a_fetched_artifact_is_kept_for_the_next_shard(tiny_artifact: Path, bench: Bench) -> None:
    """On a store that is no directory of this machine."""
    remote = open_store("memory://fetched")
    remote.put_tree(bench.job.artifact, tiny_artifact, MANIFEST)
    task = bench.task("verify")
    first = tasks.local_artifact(task, remote, bench.scratch)
    assert (first / MANIFEST).read_bytes() == (tiny_artifact / MANIFEST).read_bytes()
    remote.place.fs.rm("/fetched/artifacts", recursive=True)  # type: ignore[attr-defined]
    assert tasks.local_artifact(task, remote, bench.scratch) == first
