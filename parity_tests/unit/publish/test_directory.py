"""To a directory and back: everything arrives, whole, and equal artifacts give equal publications."""

from __future__ import annotations

import json
from pathlib import Path

from qwen3vl_export.artifact import JUNIT, PARITY, open_artifact
from qwen3vl_export.hash_cache import sha256_file
from qwen3vl_export.manifest import MANIFEST
from qwen3vl_export.publishing.publication import prepare

from ...fixtures.commands import assert_one_line, invoke
from ...harness.verify import HTML


def test_a_directory_holds_everything_and_comes_back_whole(proven: Path, tmp_path: Path) -> None:
    published, fetched = tmp_path / "published", tmp_path / "fetched"
    assert invoke("publish", str(proven), "--to", str(published)).exit_code == 0
    names = {path.relative_to(published).as_posix() for path in published.rglob("*") if path.is_file()}
    listed = set(open_artifact(proven).manifest.files)
    made = {"README.md", "parity.png", "sbom.cdx.json", "provenance.intoto.json"}
    assert names == listed | made | {MANIFEST, PARITY, JUNIT, HTML}
    assert "LICENSE" in names
    subjects = json.loads((published / "provenance.intoto.json").read_text())["subject"]
    assert {one["name"]: one["digest"]["sha256"] for one in subjects} == {
        name: sha256_file(published / name) for name in names - {"provenance.intoto.json"}
    }
    result = invoke("fetch", str(published), "--out", str(fetched))
    assert result.exit_code == 0, result
    assert {path.relative_to(fetched).as_posix() for path in fetched.rglob("*") if path.is_file()} == names
    checked = invoke("verify-artifact", str(fetched))
    assert [line.split()[0] for line in checked.stdout.splitlines()] == ["files", "contract", "parity", "provenance"]


def test_equal_artifacts_give_equal_publications(proven: Path, copy: Path) -> None:
    assert prepare(proven).generated == prepare(copy).generated


def test_an_artifact_that_was_not_published_can_be_checked(proven: Path) -> None:
    result = invoke("verify-artifact", str(proven))
    assert result.exit_code == 0
    assert "provenance  none: this artifact was not published" in result.stdout


def test_force_replaces_a_publication_that_nothing_was_added_to(proven: Path, tmp_path: Path) -> None:
    published, fetched = tmp_path / "published", tmp_path / "fetched"
    publish = ("publish", str(proven), "--to", str(published), "--demo")
    fetch = ("fetch", str(published), "--out", str(fetched))
    for command, out in ((publish, published), (fetch, fetched)):
        assert invoke(*command).exit_code == 0
        assert_one_line(invoke(*command), "not empty. Choose another directory, or replace the artifact with --force")
        (out / "notes.txt").write_text("mine")
        assert_one_line(invoke(*command, "--force"), "holds notes.txt, which is not part of the artifact there")
        assert (out / "notes.txt").read_text() == "mine"
        (out / "notes.txt").unlink()
        inode = out.stat().st_ino
        done = invoke(*command, "--force")
        assert done.exit_code == 0 and out.stat().st_ino != inode, done
