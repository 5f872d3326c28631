"""What is not published or not fetched, each in one line: unproven, unlicensed, altered, misnamed, no room."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen3vl_export.artifact import PARITY, open_artifact
from qwen3vl_export.contract import TIERS, TIERS_INCLUDED
from qwen3vl_export.errors import UnprovenError
from qwen3vl_export.evidence import Evidence
from qwen3vl_export.hash_cache import sha256_file
from qwen3vl_export.json_form import from_json
from qwen3vl_export.manifest import MANIFEST
from qwen3vl_export.promise import head_stages
from qwen3vl_export.publishing.evidence import check_tier

from ...faults.catalogue import seal
from ...fixtures.commands import assert_one_line, invoke
from ...fixtures.spoiling import WEIGHTS, append, edit
from ...harness.plan import EXAM_STAGES

SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no parity": (lambda root: (root / PARITY).unlink(), "has no parity.json. Prove it: qwen3vl-export verify"),
    "not a report": (
        lambda root: (root / PARITY).write_text("[]"),
        "is not a parity report (it is not an object). Prove it: qwen3vl-export verify",
    ),
    "a value of another type": (
        lambda root: edit(root, PARITY, lambda values: values["checks"][0].update(passed="yes")),
        "is not a parity report (checks[0].passed is not true or false)",
    ),
    "failed": (
        lambda root: edit(root, PARITY, lambda values: values["checks"][0].update(passed=False)),
        "checks failed, sampling[generation-settings] first",
    ),
    "incomplete": (
        lambda root: edit(root, PARITY, lambda values: values.update(planned=99)),
        "of 99 checks were carried out",
    ),
    "compared nothing": (
        lambda root: edit(root, PARITY, lambda values: values.update(planned=0, checks=[])),
        "0 of 0 checks were carried out",
    ),
    "fewer cases than the recipe asks for": (
        lambda root: edit(root, PARITY, lambda values: values.update(matrix="quick")) or ask_for_standard(root),
        "is of the quick matrix, the recipe asks for standard",
    ),
    "another manifest": (
        lambda root: edit(root, PARITY, lambda values: values.update(manifest_sha256="0" * 64)),
        "is about another manifest.json",
    ),
    "edited after parity": (lambda root: append(root / WEIGHTS), f"{WEIGHTS}: was altered, it has 3756033 bytes"),
    "rebuilt after parity": (lambda root: seal_again(root), "is about another manifest.json"),
    "file missing": (lambda root: (root / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
}


def ask_for_standard(root: Path) -> None:
    edit(root, MANIFEST, lambda values: values["recipe"]["parity"].update(matrix="standard"))
    edit(root, PARITY, lambda values: values.update(manifest_sha256=sha256_file(root / MANIFEST)))


def seal_again(root: Path) -> None:
    append(root / WEIGHTS)
    seal(open_artifact(root, check=False), [root / WEIGHTS])


@pytest.mark.parametrize("spoil, expected", SPOILED.values(), ids=SPOILED)
def test_an_unproven_artifact_is_refused(
    spoil: Callable[[Path], object], expected: str, copy: Path, tmp_path: Path
) -> None:
    spoil(copy)
    result = invoke("publish", str(copy), "--to", str(tmp_path / "out"))
    assert result.exit_code in (1, 2)
    assert expected in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stage", [stage for stage in head_stages({}) if stage not in EXAM_STAGES])
@pytest.mark.parametrize("command", [("publish", "--to", "out"), ("verify-artifact",)], ids=" ".join)
def test_evidence_without_a_promised_stage_is_refused(
    command: tuple[str, ...], stage: str, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget(values: dict[str, Any]) -> None:
        values["checks"] = [check for check in values["checks"] if check["stage"] != stage]
        values["planned"] = values["carried_out"] = len(values["checks"])

    monkeypatch.chdir(tmp_path)
    edit(copy, PARITY, forget)
    result = invoke(command[0], str(copy), *command[1:])
    said = f"{PARITY}: has no check of {stage}, which the recipe promises. Prove it: qwen3vl-export verify"
    assert_one_line(result, said, code=1)
    assert not (tmp_path / "out").exists()


def without_licence(root: Path) -> None:
    manifest = open_artifact(root, check=False).manifest
    (root / "LICENSE").unlink()
    files = {name: record for name, record in manifest.files.items() if name != "LICENSE"}
    (root / MANIFEST).write_text(replace(manifest, files=files).to_json(), "utf-8")
    edit(root, PARITY, lambda values: values.update(manifest_sha256=sha256_file(root / MANIFEST)))


def test_a_licence_is_needed_and_can_be_given(copy: Path, tmp_path: Path) -> None:
    without_licence(copy)
    out = tmp_path / "out"
    assert_one_line(invoke("publish", str(copy), "--to", str(out)), "no LICENSE, and a model is not published without")
    assert_one_line(invoke("publish", str(copy), "--to", str(out), "--license", "nowhere"), "nowhere: no such file")
    assert_one_line(invoke("publish", str(copy), "--to", str(out), "--license", str(copy / WEIGHTS)), "is not a text")
    mine = tmp_path / "mine"
    mine.write_text("MIT License\n")
    assert invoke("publish", str(copy), "--to", str(out), "--license", str(mine)).exit_code == 0
    assert (out / "LICENSE").read_text() == "MIT License\n"
    assert "license: mit\n" in (out / "README.md").read_text()
    assert invoke("verify-artifact", str(out)).exit_code == 0


@pytest.mark.parametrize(
    ("declared", "header", "origin"),
    [
        ({"license": "apache-2.0"}, "license: apache-2.0\n", "`apache-2.0`: the checkpoint's."),
        (
            {"license": "other", "license_name": "a: b", "license_link": "https://x.y/z"},
            'license: other\nlicense_name: "a: b"\nlicense_link: "https://x.y/z"\n',
            "`a: b`, see https://x.y/z: the checkpoint's.",
        ),
    ],
)
def test_a_licence_that_the_checkpoint_declares_will_do(
    copy: Path, tmp_path: Path, declared: dict[str, str], header: str, origin: str
) -> None:
    without_licence(copy)
    edit(copy, MANIFEST, lambda values: values["checkpoint"].update(licence=declared))
    edit(copy, PARITY, lambda values: values.update(manifest_sha256=sha256_file(copy / MANIFEST)))
    out = tmp_path / "out"
    assert invoke("publish", str(copy), "--to", str(out)).exit_code == 0
    card = (out / "README.md").read_text("utf-8")
    assert card.startswith(f"---\n{header}") and origin in card
    assert not (out / "LICENSE").exists()
    assert invoke("verify-artifact", str(out)).exit_code == 0


def test_build_stages_are_not_published(copy: Path, tmp_path: Path) -> None:
    manifest = open_artifact(copy, check=False).manifest
    (copy / "stages").mkdir()
    (copy / "stages" / "x.onnx").touch()
    record = {
        "stages/x.onnx": replace(manifest.files[WEIGHTS], bytes=0, sha256=sha256_file(copy / "stages" / "x.onnx"))
    }
    (copy / MANIFEST).write_text(replace(manifest, files={**manifest.files, **record}).to_json(), "utf-8")
    edit(copy, PARITY, lambda values: values.update(manifest_sha256=sha256_file(copy / MANIFEST)))
    assert_one_line(invoke("publish", str(copy), "--to", str(tmp_path / "out")), "holds every build stage")


@pytest.mark.parametrize(
    "target", ["hf://", "hf://tiny", "hf://me//tiny", "hf://me/a b", "hf://me/tiny.git", "hf://me/a--b", "hf://../x"]
)
def test_a_name_that_cannot_be_one_is_refused(target: str, proven: Path) -> None:
    assert_one_line(invoke("publish", str(proven), "--to", target), f"{target}: is not the name of a repository")
    assert_one_line(invoke("fetch", target), f"{target}: is not the name of a repository")


def test_a_taken_directory_stays_untouched(proven: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    assert_one_line(invoke("publish", str(proven), "--to", str(out)), "not empty, and not an artifact. Choose another")
    assert (out / "mine").exists()
    assert_one_line(invoke("publish", str(proven), "--to", str(out), "--force"), "not an artifact. Choose another")
    assert (out / "mine").exists()


def test_a_full_disk_leaves_nothing(proven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`copytree`, which fetches, goes on after an error and reports them all at its end, with no number."""

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    invoke("publish", str(proven), "--to", str(tmp_path / "published"))
    monkeypatch.setattr("shutil.copyfile", full)
    assert_one_line(invoke("publish", str(proven), "--to", str(tmp_path / "out")), "disk full, nothing was written")
    result = invoke("fetch", str(tmp_path / "published"), "--out", str(tmp_path / "out"))
    assert_one_line(result, "disk full, nothing was written")
    assert [path.name for path in tmp_path.iterdir()] == ["published"]


@pytest.mark.parametrize("name", [WEIGHTS, "README.md", "parity.png", "onnx/vision_encoder.onnx", "LICENSE"])
def test_a_tampered_file_is_named(name: str, proven: Path, tmp_path: Path) -> None:
    published = tmp_path / "published"
    invoke("publish", str(proven), "--to", str(published))
    append(published / name)
    assert_one_line(invoke("fetch", str(published), "--out", str(tmp_path / "out")), f"{name}: was altered")
    assert_one_line(invoke("verify-artifact", str(published)), f"{name}: was altered")
    assert not (tmp_path / "out").exists()


def test_what_was_not_published_is_not_fetched(proven: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert_one_line(invoke("fetch", str(proven), "--out", str(out)), "has no provenance.intoto.json")
    assert_one_line(invoke("fetch", str(tmp_path / "nowhere")), "no such directory")
    assert not out.exists()


def test_another_contract_is_told(copy: Path) -> None:
    edit(copy, MANIFEST, lambda values: values["graphs"]["decoder_model_merged"]["inputs"].pop("position_ids"))
    assert_one_line(invoke("verify-artifact", str(copy)), "inputs of decoder_model_merged are not those this version")


@pytest.mark.parametrize("required", TIERS)
@pytest.mark.parametrize("matrix", TIERS)
def test_a_tier_proves_those_it_includes(matrix: str, required: str, copy: Path) -> None:
    edit(copy, MANIFEST, lambda values: values["recipe"]["parity"].update(matrix=required))
    edit(copy, PARITY, lambda values: values.update(matrix=matrix))
    artifact = open_artifact(copy, check=False)
    evidence = from_json(Evidence, artifact.evidence_path().read_bytes())
    refused = nullcontext() if required in TIERS_INCLUDED[matrix] else pytest.raises(UnprovenError, match=required)
    with refused:
        check_tier(artifact, evidence)
