"""Prints answers on the terminal, sets up line editing there, and lets Ctrl-C interrupt.

Knows parts of answers and figures; nothing about the conversation.
"""

from __future__ import annotations

import glob
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from rich.text import Text

from ..console import Terminal, neutralize

if TYPE_CHECKING:
    from ..runtime import Answer
    from ..runtime.prompts.reply import AnswerPart

STYLES = {"content": "", "reasoning": "dim", "tool_call": "cyan"}


def print_parts(parts: Iterator[AnswerPart], screen: Terminal, before_part: Callable[[], None]) -> None:
    """Print text as it is generated, each section on separate lines, reasoning dimmed; first call `before_part`."""
    section, held = None, ""
    for part in parts:
        before_part()
        if part.section != section:
            text = part.text.lstrip()
            if not text:
                continue
            if section is not None:
                screen.print()
            section, held = part.section, ""
        else:
            text = held + part.text
        shown = text.rstrip()
        held = text[len(shown) :]  # white space at the end of a section is not printed
        screen.print(Text(neutralize(shown), STYLES[part.kind]), end="", soft_wrap=True)


def format_figures(answer: Answer, stopped: bool, context: int) -> str:
    """Time, speed and tokens of an answer, and why it ended early if it did."""
    ended = "stopped" if stopped else reason_of_end(answer, context)
    first = f"first token after {answer.first_token_seconds:.2f} s" if answer.first_token_seconds is not None else ""
    rate = f"then {answer.tokens_per_second:.1f} tokens/s" if answer.tokens_per_second else ""
    used = f"{min(answer.prompt_tokens + answer.tokens, context)} of {context} tokens of context"
    return ", ".join(filter(None, [ended, first, rate, used]))


def reason_of_end(answer: Answer, context: int) -> str:
    """Why an answer ended early; empty if it did not."""
    full = answer.prompt_tokens + answer.tokens > context
    reasons = {
        "length": "the context is full" if full else "cut at the token limit",
        "time": "cut at the time limit",
        "repetition": "ended because it repeats itself",
    }
    return reasons.get(answer.finish_reason or "", "")


def tolerate_bytes() -> None:
    """Read what is typed even where it is not text in the terminal's encoding; such a question is refused later."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def listen_to_ctrl_c() -> None:
    """Let Ctrl-C interrupt at a terminal, even if this process was started with SIGINT ignored.

    A shell script starts background jobs that way and Python keeps it, but Ctrl-C typed here is meant for the answer.
    """
    if sys.stdin.isatty() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def edit_lines(commands: list[str]) -> None:
    """Enable line editing, history and completion of commands and file names, if readline is available."""
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
