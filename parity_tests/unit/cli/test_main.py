"""The command line: what a mistake prints and how it ends, and what the small commands say."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from parity_tests.fixtures.commands import CommandResult, assert_one_line, end, invoke, start
from parity_tests.fixtures.paths import ROOT
from parity_tests.harness.options import Options
from qwen3vl_export import __version__
from qwen3vl_export.errors import BuildError, ParityError, UnprovenError


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, **functions: object) -> None:
    """Replace a module, so that what a command does with it is tested without torch."""
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**functions))  # type: ignore[misc]


@pytest.mark.parametrize(
    "arguments, expected",
    {
        "build tinny": "error: tinny: no recipe of that name. Did you mean tiny?",
        "build recipes/tinny.yaml": "error: recipes/tinny.yaml: no such recipe.",
        "recipes show tinny": "Did you mean tiny?",
        "recipes check tinny": "Did you mean tiny?",
        "recipes pin tiny": "is a directory. There is no commit to pin",
        "inspect nowhere": "error: nowhere: no such file or directory.",
        "inspect .": "error: .: no manifest.json here.",
        "inspect broken.onnx": "error: broken.onnx: not an ONNX model.",
        "inspect empty.onnx": "error: empty.onnx: not an ONNX model.",
    }.items(),
    ids=lambda value: value if value.count(" ") < 3 else "",
)
def test_a_mistake_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, expected: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.onnx").write_bytes(b"this is no graph")
    Path("empty.onnx").write_bytes(b"")
    assert_one_line(invoke(*arguments.split()), expected)


def add_note(error: BaseException) -> BaseException:
    """As it comes from a build that was well under way."""
    error.add_note("5 bytes are kept in x: continue with --resume")
    return error


@pytest.mark.parametrize(
    "raised, expected, code",
    [
        (BuildError("out: is not empty", "Choose another"), "error: out: is not empty. Choose another", 2),
        (ParityError("no matrix\nnamed x"), r"error: no matrix\nnamed x", 2),
        (UnprovenError("parity.json: 1 of 9 checks failed"), "error: parity.json: 1 of 9 checks failed", 1),
        (OSError(errno.ENOSPC, "No space left on device", "out/x.onnx"), "error: out/x.onnx: disk full. Free some", 2),
        (OSError(errno.EACCES, "Permission denied", "out"), "error: out: permission denied.", 2),
        (KeyboardInterrupt(), "error: interrupted", 130),
        (add_note(KeyboardInterrupt()), "error: interrupted; 5 bytes are kept in x: continue with --resume", 130),
        (add_note(OSError(errno.EACCES, "no")), "permission denied. Choose --out. 5 bytes are kept in x: continue", 2),
        (
            add_note(BuildError("x: corrupt", "Mend it")),
            "error: x: corrupt. Mend it. 5 bytes are kept in x: continue",
            2,
        ),
        (ModuleNotFoundError("no", name="torch"), "pip install 'qwen3vl-export[export]'", 2),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_a_build_raises_ends_as_one_line(
    monkeypatch: pytest.MonkeyPatch, raised: BaseException, expected: str, code: int
) -> None:
    def build(*_: object, **__: object) -> Path:
        raise raised

    stand_in(monkeypatch, "qwen3vl_export.exporter.pipeline", build=build)
    assert_one_line(invoke("build", "tiny"), expected, code)


def test_build_hands_over_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}

    def build(recipe: object, **options: object) -> Path:
        seen.update(options, recipe=recipe)
        return Path("there")

    stand_in(monkeypatch, "qwen3vl_export.exporter.pipeline", build=build)
    adapters = ("--adapter", "first", "--adapter", "org/second")
    options = ("--checkpoint", "here", *adapters, "--out", "there", "--keep-stages", "--force", "--resume")
    result = invoke("build", "tiny", *options)
    assert result.exit_code == 0, result
    assert seen.pop("recipe").name == "tiny"  # type: ignore[attr-defined]
    assert seen.pop("log")
    named = {"checkpoint": "here", "adapters": ["first", "org/second"], "out": Path("there")}
    assert seen == named | {"keep_stages": True, "force": True, "resume": True}
    assert result.stdout.endswith("there is ready. Verify it: qwen3vl-export verify there\n")
    result = invoke("build", "tiny", "--checkpoint", "org/name", "--revision", "v2", "--precision", "web", "--out=~/x")
    assert result.exit_code == 0, result
    assert seen["recipe"].name == "tiny-web"  # type: ignore[attr-defined]
    assert (seen["checkpoint"], seen["out"]) == ("hf://org/name@v2", Path("~/x").expanduser())


@pytest.mark.parametrize(
    ("out", "expected"),
    [
        ("loop", "loop: no directory can be made there"),
        ("loop/x", "loop/x: no directory can be made there"),
        ("file/x", "file is a file. Choose another directory"),
        ("a" * 300, "no directory can be made there ([Errno 36] File name too long"),
    ],
    ids=["links in a circle", "below them", "below a file", "long name"],
)
@pytest.mark.parametrize("options", [[], ["--plan"], ["--force"]], ids=["", "plan", "force"])
def test_where_no_directory_can_be_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, expected: str, options: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    Path("file").touch()
    assert_one_line(invoke("build", "tiny", "--out", out, *options), expected)


def test_a_disk_that_may_not_be_written_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def verify(*_: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system", "there/parity.json")

    stand_in(monkeypatch, "parity_tests.harness.verify", verify=verify)
    said = "error: there/parity.json: read-only file system. Make it writable, or work on a copy"
    assert_one_line(invoke("verify", "there"), said)


@pytest.mark.parametrize("code", [0, 1])
def test_verify_ends_with_the_verdict(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    seen: list[object] = []

    def verify(*arguments: object) -> int:
        seen.extend(arguments)
        return code

    stand_in(monkeypatch, "parity_tests.harness.verify", verify=verify)
    assert invoke("verify", "there", "--matrix", "quick").exit_code == code
    assert seen == [Path("there"), Options("quick")]
    seen.clear()
    options = ("--case", "a", "--case", "b", "--seed", "7", "--bisect", "--history", "h.jsonl", "--adapter", "c")
    assert invoke("verify", "there", *options).exit_code == code
    assert seen == [
        Path("there"),
        Options(cases=("a", "b"), seed=7, bisect=True, history=Path("h.jsonl"), adapters=("c",)),
    ]


def test_an_unknown_command_or_choice_is_refused() -> None:
    assert invoke("bild", "tiny").exit_code == 2
    assert "Did you mean 'build'?" in invoke("bild", "tiny").stderr
    assert invoke("verify", "there", "--matrix", "huge").exit_code == 2


@pytest.mark.parametrize(
    "command", ["build", "verify", "run", "inspect", "recipes list", "recipes check", "recipes pin"]
)
def test_help_shows_an_example(command: str) -> None:
    arguments = command.split()
    result = invoke(*arguments, "--help")
    assert result.exit_code == 0
    assert "Example: qwen3vl-export " in result.stdout


def test_version() -> None:
    assert invoke("--version").stdout == f"qwen3vl-export {__version__}\n"


def test_recipes_list_names_every_recipe_on_one_line() -> None:
    lines = invoke("recipes", "list").stdout.splitlines()
    assert any(line.startswith("tiny-fixed ") and "384x384" in line for line in lines)
    assert any(line.startswith("qwen3-vl-235b-a22b-thinking ") for line in lines)
    files = [*(ROOT / "recipes").glob("*.yaml"), *(ROOT / "recipes" / "precisions").glob("*.yaml")]
    assert len(lines) == 3 + len(files)  # two headers, and what to do next
    assert any(line.startswith("int4 ") and "for CPUs" in line for line in lines)


def test_recipes_show_is_a_recipe_again(tmp_path: Path) -> None:
    from qwen3vl_export.recipe import load_recipe

    for name in ("tiny-buckets", "qwen3-vl-8b-thinking"):
        file = tmp_path / f"{name}.yaml"
        file.write_text(invoke("recipes", "show", name).stdout, "utf-8")
        shown = json.loads(invoke("recipes", "show", name, "--json").stdout)
        assert load_recipe(file).to_json_dict() == shown


def test_recipes_check_reports_every_recipe(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("dtype: float3\n")
    result = invoke("recipes", "check", str(wrong), "tiny")
    assert result.exit_code == 2
    assert "wrong.yaml: " in result.stderr
    assert result.stdout.startswith("ok ")
    assert invoke("recipes", "check").exit_code == 0


def test_recipes_schema_is_written(tmp_path: Path) -> None:
    out = tmp_path / "schema.json"
    assert invoke("recipes", "schema", "--out", str(out)).exit_code == 0
    assert out.read_text("utf-8") == invoke("recipes", "schema").stdout


def test_as_a_module_in_a_pipe() -> None:
    """A real process: exit code, one line, nothing on standard output."""
    done = end(start("build", "tinny"))
    assert done == CommandResult(2, "", "error: tinny: no recipe of that name. Did you mean tiny?\n")


def test_without_the_export_extra(tmp_path: Path) -> None:
    """Where torch is not installed, the commands that do not need it work and the others say what to install."""
    for name in ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxsim", "safetensors"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('blocked', name={name!r})")
    blocked = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    for arguments in (["recipes", "check"], ["run", "--help"], ["chat", "--help"]):
        assert end(start(*arguments, env=blocked)).exit_code == 0
    assert_one_line(end(start("build", "tiny", env=blocked)), "Install it: pip install 'qwen3vl-export[export]'")


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    process = start("build", "tiny", "--out", str(tmp_path / "out"), env={"PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    process.stdout.readline()  # the checkpoint is open, the directory is being written
    process.send_signal(signal.SIGINT)
    assert_one_line(end(process), "error: interrupted", 130)
    assert list(tmp_path.iterdir()) == []


def small_recipe(folder: Path) -> Path:
    """A recipe of the token table alone."""
    recipe = folder / "tokens.yaml"
    tiny = ROOT / "recipes" / "tiny.yaml"
    recipe.write_text(f"extends: {tiny}\ngraphs: [embed_tokens]\nparity: {{held_out: false}}\n")
    return recipe


def test_a_build_started_with_ctrl_c_ignored_goes_on(tmp_path: Path) -> None:
    """A shell script starts `build &` so, and the Ctrl-C that ends the script is not meant for it."""
    recipe, out = small_recipe(tmp_path), tmp_path / "out"
    process = start("build", str(recipe), "--out", str(out), interruptible=False, env={"PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    done = end(process)
    assert done.exit_code == 0 and "is ready" in done.stdout, done
    assert (out / "manifest.json").is_file()


def test_a_build_that_may_not_write_enough_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: the write itself fails, in the middle of the weights."""
    recipe = small_recipe(tmp_path)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    result = end(start("build", str(recipe), "--out", str(tmp_path / "out"), preexec_fn=limit))
    assert_one_line(result, "file too large")
    assert list(tmp_path.iterdir()) == [recipe]


def test_pinning_without_a_network_is_one_line(tmp_path: Path) -> None:
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")}
    source = "Qwen/Qwen3-VL-2B-Instruct"
    assert_one_line(end(start("recipes", "pin", "qwen3-vl-2b-instruct", env=offline)), f"error: {source}: the Hugging")
