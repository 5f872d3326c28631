"""The prompts a model is calibrated with: a folder of pictures and a file of questions about them.

    FOLDER/prompts.jsonl    a line each: {"images": ["cat.jpg"], "ask": "What is this?", "answer": "a cat"}
    FOLDER/cat.jpg          pictures, named by the lines

`images` and `answer` may be left out; an answer is read as the model's own turn, so that calibration covers decoding.
Prompts are prepared by the shipped runtime's own code, like any question. Knows nothing about weights.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...artifact import Artifact
from ...contract import VISION_ENCODER
from ...errors import BuildError, InputError
from ...hash_cache import sha256_file
from ...manifest import Encoder, Manifest
from ...recipe.strict import StrictModel
from ...runtime.pictures.images import Image
from ...runtime.prepare import Prepared, Preparer
from ..checkpoint import Checkpoint

PROMPTS_FILE = "prompts.jsonl"


class PromptLine(StrictModel):
    """One line of the file."""

    ask: str
    images: tuple[str, ...] = ()
    answer: str = ""


@dataclass(frozen=True)
class Prompts:
    """Prepared prompts, each a batch of one.

    Attributes:
        sha256: over the lines and the pictures they name, for the manifest.
    """

    prepared: tuple[Prepared, ...]
    sha256: str

    @property
    def tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(prompt.input_ids.size for prompt in self.prepared)

    @property
    def record(self) -> dict[str, Any]:
        """The manifest's record of them."""
        return {"prompts": len(self.prepared), "tokens": self.tokens, "sha256": self.sha256}


def read_prompts(folder: Path, checkpoint: Checkpoint) -> Prompts:
    """Read and prepare a folder of prompts.

    Raises:
        BuildError: no such folder, no prompts in it, an invalid line, or a picture that is missing or cannot be read.
    """
    file = folder / PROMPTS_FILE
    if not file.is_file():
        raise BuildError(
            f"{folder}: no {PROMPTS_FILE} here", "Set calibration.source to a folder with prompts and pictures"
        )
    digest = hashlib.sha256(file.read_bytes())
    prepared = []
    with checkpoint.settings.unpacked() as settings:
        prepare = Preparer(_as_artifact(checkpoint, settings))
        for number, text in enumerate(file.read_text("utf-8").splitlines(), start=1):
            if not text.strip():
                continue
            location = f"{file}:{number}"
            line = _parse_line(text, location)
            pictures = [folder / name for name in line.images]
            for picture in pictures:
                if not picture.is_file():
                    raise BuildError(
                        f"{location}: no such picture: {picture.name}", f"Put it into the folder of {PROMPTS_FILE}"
                    )
                digest.update(sha256_file(picture).encode())
            try:
                prepared.append(prepare([_build_conversation(line, pictures)], add_generation_prompt=not line.answer))
            except InputError as error:
                raise BuildError(f"{location}: {error.what}", error.next) from error
    if not prepared:
        raise BuildError(f"{file}: holds no prompt", 'Write lines such as {"ask": "What is this?"}')
    return Prompts(tuple(prepared), digest.hexdigest())


def _parse_line(text: str, location: str) -> PromptLine:
    try:
        return PromptLine.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(key) for key in first["loc"])
        raise BuildError(
            f"{location}: {path + ': ' if path else ''}{first['msg'].lower()}",
            'A line is {"ask": "What is this?", "images": ["cat.jpg"], "answer": "a cat"}',
        ) from None


def _build_conversation(line: PromptLine, pictures: list[Path]) -> list[dict[str, Any]]:
    content: list[Any] = [*(Image(picture) for picture in pictures), line.ask]
    turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
    return [*turns, {"role": "assistant", "content": line.answer}] if line.answer else turns


def _as_artifact(checkpoint: Checkpoint, settings: Path) -> Artifact:
    """What the runtime's preparation reads of an artifact: settings files and facts."""
    manifest = Manifest(
        name=checkpoint.source,
        recipe={},
        checkpoint={},
        facts=checkpoint.facts,
        encoders=(Encoder(VISION_ENCODER, None),),
        encoder_rule="",
        graphs={},
        tools={},
        min_onnxruntime="",
    )
    return Artifact(settings, manifest)
