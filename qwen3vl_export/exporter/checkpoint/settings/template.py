"""The chat template that transformers' processor takes, tried on a few messages.

Sources, in transformers' order: `processor_config.json`, `chat_template.json`, `chat_template.jinja`. Without any of
them the processor has none, and the tokenizer's is taken, from `tokenizer_config.json`.

Knows templates; nothing about tokens.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from ....errors import CheckpointError
from ....runtime.prompts.prompt import compile_template, render
from .sources import refuse

FILE = "chat_template.jinja"
ADVICE = "Take the template from the published checkpoint"
TURNS: tuple[list[dict[str, Any]], ...] = (
    [{"type": "text", "text": "Hi"}],
    [{"type": "image"}, {"type": "text", "text": "What is this?"}],
    [{"type": "video"}, {"type": "text", "text": "What is this?"}],
)


def read_template(root: Path, tokenizer: Any) -> tuple[str, tuple[str, ...]]:
    """The template's source, and what is to be said about the choice.

    Raises:
        CheckpointError: there is none, or one that the runtime does not render as transformers does.
    """
    with refuse(root, "the chat template", ADVICE):
        settings, _ = Qwen3VLProcessor.get_processor_dict(root)
        templates = settings.get("chat_template")
        said = []
        if templates is None:
            templates = tokenizer.chat_template
            if templates is None:
                raise CheckpointError(f"{root}: no chat template", f"Add {FILE} from the published checkpoint")
            said.append("transformers' processor has no chat template here, the tokenizer's is taken")
        if isinstance(templates, dict) and len(templates) > 1:
            others = ", ".join(sorted(set(templates) - {"default"}))
            said.append(f"of several chat templates the default is taken, not {others}")
        template: str = Qwen3VLProcessor._resolve_chat_template(SimpleNamespace(chat_template=templates), None)
    check_template(template, tokenizer, root)
    return template, tuple(said)


def template_bytes(template: str, root: Path) -> bytes:
    """`chat_template.jinja`: the stored one if it is this template, whatever its line ends."""
    path = root / FILE
    same = path.is_file() and path.read_text("utf-8") == template
    return path.read_bytes() if same else template.encode()


def check_template(template: str, tokenizer: Any, root: Path) -> None:
    """Render a question, a picture and a video in the runtime and in transformers.

    Raises:
        CheckpointError: either of them fails, they differ, or a picture leaves no placeholder.
    """
    where = f"{root}: the chat template"
    with refuse(root, "the chat template", ADVICE):
        compiled = compile_template(template)
    special = tokenizer.special_tokens_map
    placeholders = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    placeholders = {kind: getattr(tokenizer, f"{kind}_token", token) for kind, token in placeholders.items()}
    for content in TURNS:
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        with refuse(root, "the chat template", ADVICE):
            text = render(compiled, messages, special)
            expected = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        if text != expected:
            raise CheckpointError(f"{where} gives {text!r} in the runtime, {expected!r} in transformers", ADVICE)
        for kind, token in placeholders.items():
            count = sum(item["type"] == kind for item in content)
            if text.count(token) != count:
                raise CheckpointError(f"{where} has {text.count(token)} {token} for {count} {kind}s", ADVICE)
