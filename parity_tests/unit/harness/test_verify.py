"""`verify` from end to end: exit code, evidence, and what it refuses to compare."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from parity_tests.faults.catalogue import FAULTS
from parity_tests.harness import plan
from parity_tests.harness import verify as harness
from parity_tests.harness.cases.matrix import Matrix, load_matrix
from parity_tests.harness.evidence.history import NAME
from parity_tests.harness.options import Options
from parity_tests.harness.plan import Check
from parity_tests.harness.progress import Tracker
from parity_tests.harness.sides.artifact.artifact_results import WORK
from parity_tests.harness.sides.recorded import find_checkpoint
from parity_tests.harness.unfinished import OUTCOMES, UnfinishedRun
from parity_tests.harness.verify import HTML
from qwen3vl_export.artifact import JUNIT, PARITY
from qwen3vl_export.errors import ArtifactError, CheckpointError, ParityError
from qwen3vl_export.evidence import Evidence
from qwen3vl_export.hash_cache import sha256_file
from qwen3vl_export.json_form import from_json
from qwen3vl_export.manifest import MANIFEST

FAULT = next(fault for fault in FAULTS if fault.name == "deepstack-dropped")
SMALL = ("minimum-64x64", "text-only", "grid-2x2")


@pytest.fixture(autouse=True)
def small_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three cases instead of thirteen."""
    matrix = load_matrix()
    small = matrix.model_copy(update={"cases": [case for case in matrix.cases if case.name in SMALL]})

    def load() -> Matrix:
        return small

    monkeypatch.setattr(harness, "load_matrix", load)
    monkeypatch.setattr(plan, "load_matrix", load)


def test_a_good_artifact_passes_and_carries_the_evidence(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert harness.verify(artifact, Options("quick")) == 0
    shown = capsys.readouterr().out
    assert "passed: 23 of 23 checks of the quick matrix" in shown
    assert "not checked: exam" in shown
    assert "Passed." in (artifact / HTML).read_text("utf-8")
    assert len((artifact.parent / NAME).read_text("utf-8").splitlines()) == 1
    evidence = from_json(Evidence, (artifact / PARITY).read_text("utf-8"))
    assert evidence.passed
    assert evidence.manifest_sha256 == sha256_file(artifact / MANIFEST)
    assert evidence.matrix == "quick"
    vision = evidence.summary["vision"]
    assert vision is not None and (vision.worst["max_abs"] or 1) < 1e-4
    assert evidence.summary["exam"] is None
    assert evidence.versions["torch"]
    assert evidence.hardware.cores
    assert ElementTree.parse(artifact / JUNIT).getroot().get("failures") == "0"


def test_a_faulty_artifact_fails_and_the_evidence_says_so(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faulty = FAULT.plant(artifact, tmp_path / "faulty")
    assert harness.verify(faulty, Options("quick")) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "FAILED" in shown
    assert FAULT.says in shown
    assert not from_json(Evidence, (faulty / PARITY).read_text("utf-8")).passed


def test_an_altered_file_is_refused(artifact: Path) -> None:
    (artifact / "config.json").write_text("{}", "utf-8")
    with pytest.raises(ArtifactError, match="was altered"):
        harness.verify(artifact, Options("quick"))
    assert not (artifact / PARITY).exists()


def test_another_checkpoint_is_refused(artifact: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(find_checkpoint(harness.open_artifact(artifact)).root, changed)
    settings = changed / "preprocessor_config.json"
    settings.write_text(settings.read_text("utf-8") + "\n", "utf-8")
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json is not the one this artifact was built from"):
        harness.verify(artifact, Options("quick", checkpoint=changed))


def test_a_file_that_the_build_did_not_have_is_another_checkpoint(artifact: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(find_checkpoint(harness.open_artifact(artifact)).root, changed)
    (changed / "processor_config.json").write_text("{}", "utf-8")
    with pytest.raises(CheckpointError, match=r"processor_config\.json is not the one this artifact was built from"):
        harness.verify(artifact, Options("quick", checkpoint=changed))


def test_an_unknown_profile_is_refused(artifact: Path) -> None:
    manifest = json.loads((artifact / MANIFEST).read_text("utf-8"))
    manifest["recipe"]["parity"]["tolerances"] = "generous"
    (artifact / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(ParityError, match="no profile named generous"):
        harness.verify(artifact, Options("quick"))


def test_one_case_is_replayed_and_leaves_no_evidence(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert harness.verify(artifact, Options(cases=["vision[grid-2x2]", "text-only"], bisect=False)) == 0
    assert "passed: 10 of 10 checks" in capsys.readouterr().out
    assert not (artifact / PARITY).exists()
    assert not (artifact.parent / NAME).exists()


def test_a_case_that_does_not_exist_is_refused(artifact: Path) -> None:
    with pytest.raises(ParityError, match=r"minimum-64x46 in cases\.yaml\. Did you mean minimum-64x64\?"):
        harness.verify(artifact, Options(cases=["minimum-64x46"]))


def test_a_failure_prints_how_to_replay_it_and_where_it_starts(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faulty = FAULT.plant(artifact, tmp_path / "faulty")
    assert harness.verify(faulty, Options("quick", bisect=True, seed=7)) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert f"replay: qwen3vl-export verify {faulty} --case minimum-64x64 --seed 7 --bisect" in shown
    assert "bisect decoder layer 1, input_layernorm" in shown
    evidence = from_json(Evidence, (faulty / PARITY).read_text("utf-8"))
    assert evidence.seed == 7
    assert evidence.bisect is not None


class Killed(BaseException):
    """The end of a process."""


def kill_after(checks: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From now on a verification ends after so many checks, if it has more; returns those that were begun."""
    begun: list[str] = []

    def track(tracker: Tracker, waiting: Sequence[Check]) -> Iterator[Check]:
        for check in waiting:
            if len(begun) == checks:
                raise Killed
            begun.append(check.id)
            yield check

    monkeypatch.setattr(Tracker, "track", track)
    return begun


@pytest.mark.parametrize(("streamed", "checks"), [(False, 9), (True, 25)])
def test_a_killed_verification_goes_on_where_it_was(
    streamed: bool, checks: int, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old evidence stays whole, nothing that was done is done again, and the evidence is that of a run at one go."""
    monkeypatch.setattr(harness, "must_stream", lambda *_: streamed)
    options = Options("quick", cache=tmp_path / "cache")
    (artifact / PARITY).write_text("of an earlier run", "utf-8")
    first = kill_after(checks, monkeypatch)
    with pytest.raises(Killed):
        harness.verify(artifact, options)
    assert (artifact / PARITY).read_text("utf-8") == "of an earlier run"
    (unfinished,) = (tmp_path / "cache" / WORK).iterdir()
    with (unfinished / OUTCOMES).open("a") as file:
        file.write('{"stage": "visi')  # it was killed while it wrote this
    done = UnfinishedRun(unfinished).outcomes()
    assert done and set(done) <= set(first)

    second = kill_after(1000, monkeypatch)
    assert harness.verify(artifact, replace(options, resume=True)) == 0
    resumed = from_json(Evidence, (artifact / PARITY).read_text("utf-8"))
    assert set(second) == {check.id for check in resumed.checks} - set(done)
    assert not unfinished.exists()

    third = kill_after(1000, monkeypatch)
    assert harness.verify(artifact, options) == 0
    complete = from_json(Evidence, (artifact / PARITY).read_text("utf-8"))
    assert set(third) == {check.id for check in complete.checks}
    for check, expected in zip(resumed.checks, complete.checks, strict=True):
        assert (check.id, check.measures, check.verdicts) == (expected.id, expected.measures, expected.verdicts)


def test_without_an_interrupted_verification_there_is_nothing_to_resume(artifact: Path, tmp_path: Path) -> None:
    options = Options("quick", cache=tmp_path / "cache", resume=True)
    with pytest.raises(ParityError, match="no verification of it was interrupted"):
        harness.verify(artifact, options)


def test_nothing_of_a_changed_artifact_or_of_other_options_is_resumed(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options("quick", cache=tmp_path / "cache")
    kill_after(2, monkeypatch)
    with pytest.raises(Killed):
        harness.verify(artifact, options)
    with pytest.raises(ParityError, match="the selection of checks changed since"):
        harness.verify(artifact, replace(options, seed=5, resume=True))
    manifest = json.loads((artifact / MANIFEST).read_text("utf-8"))
    (artifact / MANIFEST).write_text(json.dumps({**manifest, "name": "another"}), "utf-8")
    with pytest.raises(ParityError, match=r"the artifact changed since .*Leave --resume out to start anew"):
        harness.verify(artifact, replace(options, resume=True))
