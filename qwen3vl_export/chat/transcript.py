"""A conversation as a file: Markdown to read, JSON to go on with.

Knows turns and the two forms; nothing about the terminal.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    import PIL.Image

    from ..runtime import Answer, Picture


@dataclass(frozen=True)
class Shown:
    """A picture or video in a turn: its name, where it is, what the model sees, and the image to draw on."""

    name: str
    source: str  # an absolute path, a URL, or "clipboard"
    picture: Picture
    image: PIL.Image.Image | None  # None for a video


@dataclass(frozen=True)
class Turn:
    """A question and its answer."""

    shown: tuple[Shown, ...]
    question: str
    answer: Answer
    stopped: bool  # by Ctrl-C

    def messages(self) -> list[dict[str, Any]]:
        """For the next prompt. A plain answer stays as it was generated, so that its cache can be used again."""
        reply = self.answer.reply
        plain = not reply.reasoning and not reply.tool_calls
        said = {"role": "assistant", "content": self.answer.text} if plain else reply.to_message()
        return [{"role": "user", "content": [*(item.picture for item in self.shown), self.question]}, said]


def save(path: Path, artifact: str, turns: Sequence[Turn]) -> None:
    """Write a conversation, as Markdown or JSON by the suffix.

    Raises:
        InputError: another suffix, a file that is there already, or a place that cannot be written.
    """
    forms = {".md": markdown, ".json": as_json}
    form = forms.get(path.suffix.lower())
    if form is None:
        raise InputError(f"{path}: unknown form", "Use a name that ends in .md or .json")
    if path.exists():
        raise InputError(f"{path}: is there already", "Choose another name")
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(form(artifact, turns), "utf-8")
        beside.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})", "Choose another place") from error
    finally:
        beside.unlink(missing_ok=True)


def markdown(artifact: str, turns: Sequence[Turn]) -> str:
    lines = [f"# {artifact}"]
    for turn in turns:
        reply = turn.answer.reply
        lines += ["## Question"]
        lines += [
            f"![{item.name}](<{item.source}>)" if item.image else f"[{item.name}](<{item.source}>)"
            for item in turn.shown
        ]
        lines += [turn.question, "## Answer"]
        lines += ["> " + reply.reasoning.replace("\n", "\n> ")] if reply.reasoning else []
        lines += [f"```json\n{call.text.strip()}\n```" for call in reply.tool_calls]
        lines += [reply.content] if reply.content else []
        lines += ["*stopped*"] if turn.stopped else []
    return "\n\n".join(lines) + "\n"


def as_json(artifact: str, turns: Sequence[Turn]) -> str:
    messages: list[dict[str, Any]] = []
    for turn in turns:
        items = [{"type": "image" if item.image else "video", "image" if item.image else "video": item.source}
                 for item in turn.shown]  # fmt: skip
        answer = turn.answer
        messages.append({"role": "user", "content": [*items, {"type": "text", "text": turn.question}]})
        figures = {
            "finish_reason": "interrupted" if turn.stopped else answer.finish_reason,
            "prompt_tokens": answer.prompt_tokens,
            "tokens": answer.tokens,
            "first_token_seconds": answer.first_token_seconds,
            "tokens_per_second": answer.tokens_per_second,
        }
        messages.append({**turn.messages()[1], "figures": figures})
    return json.dumps({"artifact": artifact, "messages": messages}, indent=1, ensure_ascii=False) + "\n"
