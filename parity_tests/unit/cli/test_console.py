"""The terminal belongs to the program: nothing that a stranger named or wrote acts on it, whatever prints it."""

from __future__ import annotations

import ast
import io
import json
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Group
from rich.panel import Panel
from rich.text import Text
from typer.testing import CliRunner

from parity_tests.fixtures.answers import always_answer
from parity_tests.fixtures.commands import invoke
from parity_tests.fixtures.paths import ROOT
from qwen3vl_export import console
from qwen3vl_export.chat import Chat
from qwen3vl_export.chat.screen import print_parts
from qwen3vl_export.cli.main import app
from qwen3vl_export.console import neutralize, one_line
from qwen3vl_export.runtime import Qwen3VL
from qwen3vl_export.runtime.prompts.reply import AnswerPart

ATTACKS = {
    "clear": "\x1b[2J",
    "title": "\x1b]0;pwned\x07",
    "hyperlink": "\x1b]8;;https://example.org\x1b\\here\x1b]8;;\x1b\\",
    "C1": "\x9b31m\x9d0;x\x9c",
    "overwrite": "bad\rgood\x08\x08",
    "delete": "\x7f",
    "next line": "\x85\u2028\u2029",
    "reversed": "cat\u202egpj.exe\u2066\u2069",
    "invisible": "a\u2060\ufeff\u206ab",
    "half a character": "\udcff\ud83d",
}
STRANGE = "".join(attack for name, attack in ATTACKS.items() if name != "half a character")  # can be encoded
HARMLESS = (
    "a cat, naïve, 你, \u05e9\u05dc\u05d5\u05dd\u200f, \u0645\u200c\u062e, 👩\u200d👩\u200d👧, ไทย\u200b\n\ta table"
)


def unsafe(text: str) -> set[str]:
    """What a terminal would act on, by Unicode's own properties."""
    reordering = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return {
        letter
        for letter in text
        if letter not in "\n\t"
        and (
            unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(letter) in reordering
        )
    }


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_an_escape_is_shown_instead(attack: str) -> None:
    shown = neutralize(attack)
    assert unsafe(shown) == set() and shown.isprintable()
    assert "\\" in shown and neutralize(shown) == shown


@given(st.text(max_size=60))
def test_no_text_gets_through(text: str) -> None:
    assert unsafe(neutralize(text)) == set()
    assert unsafe(one_line(text)) == set() and len(one_line(text).splitlines()) <= 1


def test_what_languages_need_stays() -> None:
    assert neutralize(HARMLESS) == HARMLESS
    assert neutralize("two\r\nlines") == "two\nlines"


@pytest.mark.parametrize("indent", [None, 1])
def test_json_stays_equal(indent: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    value = {"names": [*ATTACKS.values(), HARMLESS]}
    console.write_json(value, indent)
    printed = capsys.readouterr().out
    assert unsafe(printed) == set() and json.loads(printed) == value


class Screen(io.StringIO):
    """A terminal that records; the program's own colours are off, so every escape is a stranger's."""

    def isatty(self) -> bool:
        return True


@contextmanager
def terminal() -> Iterator[Screen]:
    """Standard output and error, as one terminal without colours. No fixture: pytest sets both when a test starts."""
    recorded = Screen()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_COLOR", "1")
        patch.setenv("TERM", "dumb")
        patch.setattr(sys, "stdout", recorded)
        patch.setattr(sys, "stderr", recorded)
        yield recorded


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_every_way_to_print_is_safe(attack: str) -> None:
    with terminal() as screen:
        out = console.console()
        console.say(attack)
        console.print_error(attack)
        console.write(f"{attack}\n")
        out.print(console.table(attack, (attack, "b"), [(attack, 1)]))
        out.print(attack, Text(attack), Panel(attack), Group(attack, Text(attack)), markup=False)
        print_parts(iter([AnswerPart("content", letter, 0) for letter in f"{attack}."]), out, lambda: None)
        with out.status(attack):
            pass
    printed = screen.getvalue()
    assert unsafe(printed) == set()
    assert len(printed.splitlines()) > 12


def test_markup_in_a_name_is_no_markup() -> None:
    name = "[link=https://example.org][red]:cat:[/]\\"
    with terminal() as screen:
        console.say(name)
        console.print_error(name)
        console.console().print(console.table("", ("name",), [(name,)]))
    assert screen.getvalue().count(name) == 3


def test_a_cell_is_one_line_and_as_wide_as_it_looks() -> None:
    with terminal() as screen:
        console.console().print(console.table("", ("name", "size"), [("a\nb\x1b[2J", 1), ("cat", 2)], right=("size",)))
    rows = [row.rstrip() for row in screen.getvalue().splitlines()]
    assert [row[-1] for row in rows] == ["e", "1", "2"] and len({len(row) for row in rows}) == 1


def test_an_answer_is_exact_in_a_pipe_and_harmless_on_a_terminal(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    always_answer(monkeypatch, STRANGE + HARMLESS)
    arguments = ("run", str(tiny_artifact), "--prompt", "Hi")
    assert CliRunner().invoke(app, arguments).stdout == f"{STRANGE}{HARMLESS}\n"
    with terminal() as screen:
        assert app(arguments, standalone_mode=False) is None
    assert screen.getvalue() == neutralize(f"{STRANGE}{HARMLESS}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        (STRANGE,),
        (f"--{STRANGE}",),
        ("build", STRANGE),
        ("build", "tiny", STRANGE),
        ("verify", STRANGE),
        ("verify", "a", "--matrix", STRANGE),
        ("run", STRANGE, "--prompt", "Hi"),
        ("run", "a", STRANGE),
        ("run", "a", f"--{STRANGE}"),
        ("run", "a", "--prompt", "Hi", "--tools", STRANGE),
        ("run", "a", "--max-new-tokens", STRANGE),
        ("chat", STRANGE),
        ("publish", STRANGE, "--to", STRANGE),
        ("fetch", STRANGE),
        ("verify-artifact", STRANGE),
        ("inspect", STRANGE),
        ("recipes", STRANGE),
        ("recipes", "show", STRANGE),
        ("recipes", "check", STRANGE),
        ("recipes", "pin", STRANGE),
        ("fleet", "status", STRANGE, "--store", STRANGE),
    ],
    ids=lambda arguments: " ".join(word for word in arguments if word.isprintable()) or "no command",
)
def test_no_command_repeats_what_it_was_given(arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert unsafe(result.stdout + result.stderr) == set()


def test_a_chat_repeats_no_name_as_it_is(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Chat, "name", STRANGE)
    typed = [f"{STRANGE}.png what?", f"/image {STRANGE}.png", f"/save {STRANGE}.md", f"/{STRANGE}", f"/video {STRANGE}"]
    with terminal() as screen:
        lines = iter([*typed, "/quit"])

        def type_next(prompt: str) -> str:
            screen.write(prompt)
            return next(lines)

        monkeypatch.setattr("builtins.input", type_next)
        Chat(Qwen3VL.load(tiny_artifact), console.console(), {}).run()
    assert unsafe(screen.getvalue()) == set() and screen.getvalue().count("u001b") >= len(typed)


# Everything goes through the console.

PRINTING = [*(ROOT / "qwen3vl_export").rglob("*.py"), *(ROOT / "parity_tests" / "harness").rglob("*.py")]
OWN_OUTPUT = {"print", "echo", "secho", "pprint", "Console", "print_json", "rprint"}  # calls, whoever they belong to
CONSOLES = ("console()", "out", "screen", "stderr", "self.screen", "self.bars.console")  # names of a `Terminal`
SHOWN_ON = {"Progress", "Live", "Status"}  # of rich; they need a console


def direct_output(tree: ast.AST) -> Iterator[str]:
    """Calls that print past the console, with their lines."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        owner, _, name = called.rpartition(".")
        streams = owner in ("sys.stdout", "sys.stderr", "stdout", "stderr") and name.startswith(("write", "buffer"))
        prints = name in OWN_OUTPUT and owner not in CONSOLES
        bare = name in SHOWN_ON and "console" not in {keyword.arg for keyword in node.keywords}
        if streams or prints or bare:
            yield f"line {node.lineno}: {called}"


@pytest.mark.parametrize("path", PRINTING, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_only_the_console_prints(path: Path) -> None:
    if path == Path(console.__file__):
        return
    assert list(direct_output(ast.parse(path.read_text("utf-8")))) == []


@pytest.mark.parametrize(
    "code",
    [
        "print('x')",
        "typer.echo('x')",
        "click.secho('x')",
        "sys.stdout.write('x')",
        "sys.stderr.writelines(['x'])",
        "Console()",
        "rich.console.Console(stderr=True)",
        "rich.print('x')",
        "Progress(TextColumn('x'))",
    ],
)
def test_the_rule_knows_other_ways_to_print(code: str) -> None:
    assert len(list(direct_output(ast.parse(code)))) == 1
    assert list(direct_output(ast.parse("say('x'); self.screen.print('x'); Progress(console=console())"))) == []
