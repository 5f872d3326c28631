"""What `build` makes of --checkpoint, --revision and --out, and whether the next step it prints works."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from parity_tests.fixtures.commands import assert_one_line, invoke
from parity_tests.fixtures.paths import TINY
from qwen3vl_export.cli.checkpoints import checkpoint_at, verify_command
from qwen3vl_export.cli.paths import expand
from qwen3vl_export.recipe import find_recorded, load_recipe


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory outside the repository, with a checkpoint whose name has a space, and a recipe of it."""
    shutil.copytree(TINY, tmp_path / "far away" / "my model")
    (tmp_path / "far away" / "mine.yaml").write_text("checkpoint: {source: ./my model}\n")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.mark.parametrize(
    ("recipe", "checkpoint", "named"),
    [
        ("tiny", None, False),
        ("tiny", str(TINY), True),  # recorded as `tiny`, which lies in recipes/checkpoints
        ("../far away/mine.yaml", None, True),
        ("tiny", "../far away/my model", True),
        ("tiny", "Qwen/Qwen3-VL-2B-Instruct", False),
    ],
)
def test_the_next_step_names_the_checkpoint_where_it_must(
    elsewhere: Path, recipe: str, checkpoint: str | None, named: bool
) -> None:
    loaded = load_recipe(recipe)
    words = shlex.split(verify_command(Path("out dir"), loaded, checkpoint))
    assert words[:3] == ["qwen3vl-export", "verify", "out dir"]
    assert ("--checkpoint" in words) is named
    if named:
        expected = Path(checkpoint) if checkpoint else loaded.checkpoint_dir
        assert expected is not None and Path(words[-1]).samefile(expected)


def test_the_next_step_names_the_adapters_where_it_must(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("far away/lora", "work/near"):
        (elsewhere / name).mkdir()
    recipe = load_recipe("tiny")
    assert "--adapter" not in verify_command(Path("out"), recipe, None, ["near", "org/name"])
    named = ["near", "org/name", "../far away/lora"]
    words = shlex.split(verify_command(Path("out"), recipe, None, named))
    assert words[3:] == [word for name in named for word in ("--adapter", name)]
    (elsewhere / "far away" / "mine.yaml").write_text("checkpoint: {source: org/name, adapters: [./lora]}\n")
    words = shlex.split(verify_command(Path("out"), load_recipe("../far away/mine.yaml"), None))
    assert words[3] == "--adapter" and Path(words[4]).samefile("../far away/lora")
    Path("near", "adapter_config.json").touch()  # its base is recorded as the checkpoint
    assert shlex.split(verify_command(Path("out"), recipe, "near"))[3:] == ["--checkpoint", "near"]


def test_a_checkpoint_in_the_current_directory_is_found_again(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(elsewhere / "far away")
    assert find_recorded("./my model") == find_recorded("my model") == Path("my model")
    assert "--checkpoint" not in verify_command(Path("out"), load_recipe("mine.yaml"), None)
    assert "--checkpoint" not in verify_command(Path("out"), load_recipe("tiny"), "my model")
    assert find_recorded("nowhere") is None


@pytest.mark.parametrize(
    ("recipe", "checkpoint", "revision", "expected"),
    [
        ("tiny", None, None, None),
        ("tiny", "org/name", None, "org/name"),
        ("tiny", "org/name", "v2", "hf://org/name@v2"),
        ("tiny", "hf://org/name@v2", "v2", "hf://org/name@v2"),
        ("qwen3-vl-2b-instruct", None, "v2", "hf://Qwen/Qwen3-VL-2B-Instruct@v2"),
    ],
)
def test_a_revision_belongs_to_the_repository(
    recipe: str, checkpoint: str | None, revision: str | None, expected: str | None
) -> None:
    assert checkpoint_at(load_recipe(recipe), checkpoint, revision) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["build", "tiny", "--revision", "v2"],
            "./checkpoints/tiny: a directory has no revisions. Leave --revision out",
        ),
        (["build", "tiny", "--checkpoint", str(TINY), "--revision", "v2"], "a directory has no revisions"),
        (["build", "tiny", "--checkpoint", "hf://a/b@v1", "--revision", "v2"], "names another revision than"),
    ],
)
def test_a_revision_of_a_directory_is_refused(arguments: list[str], expected: str) -> None:
    assert_one_line(invoke(*arguments), expected)


def test_the_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert expand("~/x") == tmp_path / "x"
    assert expand("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")
    (tmp_path / "taken").touch()
    for arguments in (["build", "tiny", "--out=~/taken"], ["build", "tiny", "--out=~/taken", "--plan"]):
        assert_one_line(invoke(*arguments), f"{tmp_path / 'taken'}: is a file")
    for command in ("verify", "inspect", "run", "verify-artifact"):
        options = ["--prompt", "x"] if command == "run" else []
        assert str(tmp_path / "nowhere") in invoke(command, "~/nowhere", *options).stderr
