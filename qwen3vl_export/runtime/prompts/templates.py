"""The chat templates of an artifact, and which of them renders a prompt.

`chat_template.jinja` is the only one of most artifacts. `tokenizer_config.json` may have several, by name, of which
transformers' tokenizer takes `tool_use` if tools are given and `default` otherwise.

Knows where templates are; renders nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...artifact import Artifact
from ...errors import ArtifactError, InputError
from .prompt import ChatTemplate

FILE = "chat_template.jinja"
DEFAULT, TOOLS = "default", "tool_use"
OF_EVERY_PROMPT = {"add_generation_prompt"}  # given to all templates


def read_templates(artifact: Artifact, tokenizer_config: Mapping[str, Any]) -> dict[str, ChatTemplate]:
    """The chat templates by name; a single one is the default.

    Raises:
        ArtifactError: there is no default, or a template has a syntax error.
    """
    source: Any = artifact.text_file(FILE) if artifact.has(FILE) else tokenizer_config.get("chat_template")
    if isinstance(source, list):  # the form of transformers 4
        source = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
    sources = source if isinstance(source, dict) else {DEFAULT: source}
    if DEFAULT not in sources or not all(isinstance(text, str) for text in sources.values()):
        raise ArtifactError(f"{artifact.root}: no {FILE}", f"Rebuild: {artifact.build_command}")
    return {name: ChatTemplate.of(text) for name, text in sources.items()}


def choose_template(templates: Mapping[str, ChatTemplate], variables: Mapping[str, Any]) -> ChatTemplate:
    """The template for a prompt with these variables.

    Raises:
        InputError: it does not read one of them.
    """
    name = TOOLS if variables.get("tools") is not None else DEFAULT
    template = templates.get(name, templates[DEFAULT])
    read = template.names.variables - {"messages"}
    for name, value in variables.items():
        empty = value is None or (isinstance(value, list | tuple) and not value)
        if not empty and name not in read | OF_EVERY_PROMPT:
            known = ", ".join(sorted(read)) or "messages alone"
            raise InputError(f"the chat template does not read {name}", f"It reads {known}")
    return template
