"""How answers look on the terminal, how lines are edited there, and that Ctrl-C is heard.

Knows parts of answers and figures; nothing about the conversation.
"""

from __future__ import annotations

import glob
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from ..console import visible

if TYPE_CHECKING:
    from ..runtime import Answer
    from ..runtime.reply import AnswerPart

STYLES = {"content": "", "reasoning": "dim", "tool_call": "cyan"}


def print_parts(parts: Iterator[AnswerPart], screen: Console, ready: Callable[[], None]) -> None:
    """Text as it comes, each section on lines of its own, reasoning dimmed; `ready` is called before the first."""
    section, held = None, ""
    for part in parts:
        ready()
        if part.section != section:
            text = visible(part.text).lstrip()
            if not text:
                continue
            if section is not None:
                screen.print()
            section, held = part.section, ""
        else:
            text = held + visible(part.text)
        shown = text.rstrip()
        held = text[len(shown) :]  # white space at the end of a section is not shown
        screen.print(Text(shown, STYLES[part.kind]), end="", soft_wrap=True)


def figures(answer: Answer, stopped: bool, context: int) -> str:
    """What an answer took, and why it ended if not by itself."""
    full = answer.prompt_tokens + answer.tokens > context
    reasons = {"length": "the context is full" if full else "cut at the token limit", "time": "cut at the time limit"}
    ended = "stopped" if stopped else reasons.get(answer.finish_reason or "", "")
    first = f"first token after {answer.first_token_seconds:.2f} s" if answer.first_token_seconds is not None else ""
    rate = f"then {answer.tokens_per_second:.1f} tokens/s" if answer.tokens_per_second else ""
    used = f"{min(answer.prompt_tokens + answer.tokens, context)} of {context} tokens of context"
    return ", ".join(filter(None, [ended, first, rate, used]))


def listen_to_ctrl_c() -> None:
    """Let Ctrl-C interrupt at a terminal, even if this process was started with SIGINT ignored.

    A shell script starts what it puts into the background so, and Python keeps it; but who types here means the answer.
    """
    if sys.stdin.isatty() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def edit_lines(commands: list[str]) -> None:
    """Line editing, history and completion of commands and file names, where the system has readline."""
    with suppress(ImportError):
        import readline

        def complete(text: str, number: int) -> str | None:
            names = [f"{command} " for command in commands if text.startswith("/") and command.startswith(text)]
            paths = [
                path + "/" * os.path.isdir(path) for path in glob.glob(glob.escape(os.path.expanduser(text)) + "*")
            ]
            return dict(enumerate([*names, *sorted(paths)])).get(number)

        readline.set_completer(complete)
        readline.set_completer_delims(" \t\n")
        readline.parse_and_bind("tab: complete")
