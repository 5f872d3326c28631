"""Saves a conversation: as Markdown to read, as JSON for programs.

Knows turns and the two formats; nothing about the terminal.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..output import whole_file

if TYPE_CHECKING:
    import PIL.Image

    from ..runtime import Answer, Picture


@dataclass(frozen=True)
class Attachment:
    """A picture or video in a turn."""

    name: str
    source: str  # an absolute path, a URL, or "clipboard"
    picture: Picture  # what the model reads
    image: PIL.Image.Image | None  # to draw on; None for a video


@dataclass(frozen=True)
class Turn:
    """A question and its answer."""

    attachments: tuple[Attachment, ...]
    question: str
    answer: Answer
    stopped: bool  # by Ctrl-C

    def messages(self) -> list[dict[str, Any]]:
        """Messages for the next prompt. A plain answer is repeated as generated, so that its cache is reused."""
        reply = self.answer.reply
        plain = not reply.reasoning and not reply.tool_calls
        answer = {"role": "assistant", "content": self.answer.text} if plain else reply.to_message()
        return [{"role": "user", "content": [*(item.picture for item in self.attachments), self.question]}, answer]


def save(path: Path, artifact: str, turns: Sequence[Turn]) -> None:
    """Write a conversation, as Markdown or JSON by the suffix.

    Raises:
        InputError: another suffix, a file that already exists, or a path that cannot be written.
    """
    formats = {".md": to_markdown, ".json": to_json}
    convert = formats.get(path.suffix.lower())
    if convert is None:
        raise InputError(f"{path}: unknown format", "Use a name that ends in .md or .json")
    if path.exists():
        raise InputError(f"{path}: already exists", "Choose another name")
    try:
        with whole_file(path) as partial:
            partial.write_text(convert(artifact, turns), "utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})", "Choose another place") from error


def to_markdown(artifact: str, turns: Sequence[Turn]) -> str:
    lines = [f"# {artifact}"]
    for turn in turns:
        reply = turn.answer.reply
        lines += ["## Question"]
        lines += [
            f"![{item.name}](<{item.source}>)" if item.image else f"[{item.name}](<{item.source}>)"
            for item in turn.attachments
        ]
        lines += [turn.question, "## Answer"]
        lines += ["> " + reply.reasoning.replace("\n", "\n> ")] if reply.reasoning else []
        lines += [f"```json\n{call.text.strip()}\n```" for call in reply.tool_calls]
        lines += [reply.content] if reply.content else []
        lines += ["*stopped*"] if turn.stopped else []
    return "\n\n".join(lines) + "\n"


def to_json(artifact: str, turns: Sequence[Turn]) -> str:
    """The messages, as the runtime reads them, and the figures of each answer."""
    messages: list[dict[str, Any]] = []
    figures = []
    for turn in turns:
        items = [{"type": "image" if item.image else "video", "image" if item.image else "video": item.source}
                 for item in turn.attachments]  # fmt: skip
        answer = turn.answer
        question = {"role": "user", "content": [*items, {"type": "text", "text": turn.question}]}
        messages += [question, turn.messages()[1]]
        figures.append(
            {
                "finish_reason": "interrupted" if turn.stopped else answer.finish_reason,
                "prompt_tokens": answer.prompt_tokens,
                "tokens": answer.tokens,
                "first_token_seconds": answer.first_token_seconds,
                "tokens_per_second": answer.tokens_per_second,
            }
        )
    saved = {"artifact": artifact, "messages": messages, "figures": figures}
    return json.dumps(saved, indent=1, ensure_ascii=False) + "\n"
