"""No command replaces what is not an artifact of ours, or what holds something that it reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen3vl_export.artifact import STATEMENT
from qwen3vl_export.errors import BuildError
from qwen3vl_export.manifest import MANIFEST, FileRecord
from qwen3vl_export.recipe import load_recipe
from qwen3vl_export.replaceable import check_output, whole_directory

from ...fixtures.commands import assert_one_line, invoke
from ...fixtures.paths import ROOT, TINY
from ...fixtures.standin import artifact_without_graphs


def make_artifact(root: Path, *names: str) -> Path:
    """An artifact whose manifest lists these files, and whatever is in the directory already."""
    for name in (*names, "onnx/decoder.onnx"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    listed = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    files = {name: FileRecord(1, "0" * 64) for name in listed}
    standin = artifact_without_graphs(root, tools={"qwen3vl-export": "0"}, files=files)
    (root / MANIFEST).write_text(standin.manifest.to_json(), "utf-8")
    return root


def files_below(root: Path) -> dict[str, bytes]:
    """Every file and its bytes; a directory ends in a slash, and a link says where it leads."""
    found = {}
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            found[name] = str(path.readlink()).encode()
        else:
            found[name if path.is_file() else f"{name}/"] = path.read_bytes() if path.is_file() else b""
    return found


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Directories that `--out` may name. Those that hold what a command reads would otherwise be artifacts."""
    root = tmp_path / "world"
    (root / "thesis").mkdir(parents=True)
    (root / "thesis" / "thesis.txt").write_text("mine")
    (root / "file").write_text("mine")
    make_artifact(root / "notes")
    (root / "notes" / "notes.txt").write_text("mine")
    make_artifact(root / "deep")
    (root / "deep" / "onnx" / "mine.onnx").write_text("mine")
    make_artifact(root / "linked")
    (root / "linked" / "data").symlink_to(root / "thesis")
    (make_artifact(root / "damaged") / MANIFEST).write_text("{")
    make_artifact(root / "foreign")
    (root / "foreign" / MANIFEST).write_text(json.dumps({"name": "app", "files": {"onnx/decoder.onnx": {}}}))
    make_artifact(root / "models", "tiny/config.json", "other/model.safetensors")
    make_artifact(root / "models" / "tiny")
    make_artifact(root / "prompts", "prompts.jsonl")
    for name, text in {"base": f"extends: {ROOT}/recipes/tiny.yaml", "mine": "extends: ../base/recipe.yaml"}.items():
        (root / name).mkdir()
        (root / name / "recipe.yaml").write_text(f"{text}\ncalibration: {{source: ../prompts}}\n")
        make_artifact(root / name)
    make_artifact(root / "source" / "inner")
    make_artifact(root / "source")
    make_artifact(root / "licence", "LICENSE")
    make_artifact(root / "work" / "below")
    make_artifact(root / "work")
    (root / "link").symlink_to(root / "work")
    (root / "link-to-thesis").symlink_to(root / "thesis")
    monkeypatch.chdir(root / "work" / "below")
    return root


HERE = {
    ".": "current directory",
    "..": "holds the current directory",
    "../../work/./below/../below": "is the current directory",
    "../../link": "holds the current directory",
    "../../thesis": "not an artifact",
    "../../link-to-thesis": "not an artifact",
    "../../file": "is a file",
    "../../damaged": "not an artifact",
    "../../foreign": "not an artifact",
    "../../notes": "holds notes.txt, which is not part of the artifact",
    "../../deep": "holds onnx/mine.onnx, which is not part",
    "../../linked": "holds data, which is not part",
}
READ = {
    "build": ("../../mine", "../../base", "../../prompts", "../../models", "../../models/tiny"),
    "publish": ("../../source", "../../source/inner", "../../licence"),
    "fetch": ("../../source", "../../source/inner"),
}
COMMANDS = {
    "build": ["build", "../../mine/recipe.yaml", "--checkpoint", "../../models/tiny", "--out"],
    "publish": ["publish", "../../source/inner", "--license", "../../licence/LICENSE", "--to"],
    "fetch": ["fetch", "../../source/inner", "--out"],
}
CASES = [
    (command, target, expected)
    for command, read in READ.items()
    for target, expected in {**HERE, **dict.fromkeys(read, "which is read")}.items()
]


@pytest.mark.parametrize("options", [["--force"], []], ids=["force", ""])
@pytest.mark.parametrize("command, target, expected", CASES)
def test_a_directory_that_must_stay_is_refused(
    command: str, target: str, expected: str, options: list[str], world: Path
) -> None:
    before = files_below(world)
    refused = invoke(*COMMANDS[command], target, *options)
    assert_one_line(refused, expected)
    assert "--force" not in refused.stderr
    assert files_below(world) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_force_is_advised_where_it_helps(command: str, world: Path) -> None:
    make_artifact(world / "old")
    before = files_below(world)
    assert_one_line(invoke(*COMMANDS[command], "../../old"), "not empty. Choose another directory, or replace the art")
    assert files_below(world) == before


@pytest.mark.parametrize("target, expected", HERE.items())
def test_what_only_says_what_it_would_do_refuses_as_well(target: str, expected: str, world: Path) -> None:
    assert_one_line(invoke(*COMMANDS["build"], target, "--plan"), expected)
    assert_one_line(invoke(*COMMANDS["publish"], target, "--dry-run"), expected)


@pytest.mark.parametrize("target, expected", HERE.items())
def test_a_fleet_refuses_before_it_builds(target: str, expected: str, world: Path) -> None:
    """It publishes under the recipe's name, so the recipe is called as the directory is."""
    named = (world / "work" / "below" / target).resolve() if "link" not in target else world / Path(target).name
    recipe = world / "fleet.yaml"
    recipe.write_text(f"extends: {ROOT}/recipes/tiny.yaml\nname: {named.name}\n")
    before = files_below(world)
    store = world.parent / "store"
    publish = f"{named.parent}/{{name}}"
    refused = invoke("fleet", "run", str(recipe), "--matrix", "quick", "--store", str(store), "--publish", publish)
    assert_one_line(refused, expected)
    assert "--force" not in refused.stderr
    assert files_below(world) == before
    assert [path.name for path in store.iterdir() if path.is_file()] == ["fleet-store.json"]


def test_a_recipe_knows_every_file_that_it_is_read_from(world: Path) -> None:
    recipe = load_recipe("../../mine/recipe.yaml")
    read = {path.resolve() for path in recipe.inputs}
    files = {world / "mine" / "recipe.yaml", world / "base" / "recipe.yaml", ROOT / "recipes" / "tiny.yaml"}
    assert read == {*files, TINY.resolve(), world / "prompts"}


def as_it_is(root: Path) -> None:
    pass


def verified(root: Path) -> None:
    for name in ("parity.json", "parity.xml", "parity.html"):
        (root / name).touch()


def published(root: Path) -> None:
    subjects = [{"name": name, "digest": {}} for name in (MANIFEST, "README.md", "index.html")]
    (root / STATEMENT).write_text(json.dumps({"subject": subjects}))
    for name in ("README.md", "index.html", "provenance.sigstore.json"):
        (root / name).touch()


def of_another_version(root: Path) -> None:
    values = json.loads((root / MANIFEST).read_text("utf-8"))
    (root / MANIFEST).write_text(json.dumps({**values, "format": 99, "new": None}))


def incomplete(root: Path) -> None:
    (root / "onnx" / "decoder.onnx").unlink()


def of_precisions(root: Path) -> None:
    values = json.loads((root / MANIFEST).read_text("utf-8"))
    (root / MANIFEST).write_text(json.dumps({**values, "precisions": {"q4": {}}}))
    (root / "parity_q4.json").touch()


@pytest.mark.parametrize("change", [as_it_is, verified, published, of_another_version, incomplete, of_precisions])
def test_force_replaces_every_kind_of_artifact(change: Callable[[Path], None], tmp_path: Path) -> None:
    out = make_artifact(tmp_path / "out")
    change(out)
    with pytest.raises(BuildError, match="--force"), whole_directory(out):
        raise AssertionError("must not get here")
    with whole_directory(out, force=True) as building:
        (building / "new").touch()
    assert files_below(tmp_path) == {"out/": b"", "out/new": b""}


def test_what_publishing_adds_belongs_to_a_published_artifact_only(tmp_path: Path) -> None:
    (make_artifact(tmp_path / "out") / "README.md").write_text("mine")
    with pytest.raises(BuildError, match=r"holds README\.md, which is not part of"):
        check_output(tmp_path / "out", force=True)


def test_several_files_are_counted(tmp_path: Path) -> None:
    out = make_artifact(tmp_path / "out")
    for name in "abc":
        (out / name).touch()
    with pytest.raises(BuildError, match=r"holds a and 2 more, which"):
        check_output(out, force=True)


def test_a_directory_inside_what_is_read_can_be_written(tmp_path: Path) -> None:
    """Nothing is deleted there."""
    checkpoint = tmp_path / "checkpoint"
    (checkpoint / "out").mkdir(parents=True)
    assert check_output(checkpoint / "out", inputs=[checkpoint]) == checkpoint / "out"
    assert check_output(checkpoint / "new", inputs=[checkpoint]) == checkpoint / "new"


def test_what_does_not_exist_is_not_held(tmp_path: Path) -> None:
    """A repository's name looks like a path."""
    make_artifact(tmp_path / "org")
    assert check_output(tmp_path / "org", force=True, inputs=[tmp_path / "org" / "model"]) == tmp_path / "org"


def test_a_checkpoint_reached_by_a_link_is_held_too(tmp_path: Path) -> None:
    make_artifact(tmp_path / "models", "tiny/config.json")
    (tmp_path / "link").symlink_to(tmp_path / "models" / "tiny")
    with pytest.raises(BuildError, match="link, which is read"):
        check_output(tmp_path / "models", force=True, inputs=[tmp_path / "link"])


def test_fetching_into_the_source_is_refused(world: Path) -> None:
    before = files_below(world)
    assert_one_line(invoke("fetch", "../../source", "--out", "../../source/inside/it"), "lies inside ../../source")
    assert files_below(world) == before


def test_a_links_target_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    make_artifact(tmp_path / "disk" / "out")
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "out")
    with whole_directory(tmp_path / "out", force=True) as building:
        (building / "new").touch()
    assert files_below(tmp_path / "disk") == {"out/": b"", "out/new": b""}
    assert (tmp_path / "out").is_symlink()
