"""The prompts a model is calibrated with: a folder of pictures and a file that says what is asked about them.

    FOLDER/prompts.jsonl    a line each: {"images": ["cat.jpg"], "ask": "What is this?", "answer": "a cat"}
    FOLDER/cat.jpg          pictures, named by the lines

`images` and `answer` may be left out; an answer is read as the model's own turn, so that calibration sees what
decoding sees. Prepared by the shipped runtime's own code, as any question is. Knows nothing about weights.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...artifact import Artifact, Encoder, Manifest
from ...contract import VISION_ENCODER
from ...errors import BuildError, InputError
from ...hash_cache import sha256_file
from ...recipe.strict import Strict
from ...runtime.images import Image
from ...runtime.prepare import Prepared, Preparer
from ..checkpoint import Checkpoint

PROMPTS = "prompts.jsonl"


class Line(Strict):
    """One line of the file."""

    ask: str
    images: tuple[str, ...] = ()
    answer: str = ""


@dataclass(frozen=True)
class Prompts:
    """Prepared prompts, each a batch of one.

    `sha256` is over the lines and the pictures they name, so that a manifest can say what was calibrated with.
    """

    prepared: tuple[Prepared, ...]
    sha256: str

    @property
    def tokens(self) -> int:
        return sum(one.input_ids.size for one in self.prepared)


def read_prompts(folder: Path, checkpoint: Checkpoint) -> Prompts:
    """Read and prepare a folder of prompts.

    Raises:
        BuildError: no folder, no prompts in it, a line that is none, or a picture that cannot be used.
    """
    file = folder / PROMPTS
    if not file.is_file():
        raise BuildError(f"{folder}: no {PROMPTS} here", "calibration.source names a folder with prompts and pictures")
    digest = hashlib.sha256(file.read_bytes())
    preparer = Preparer(_settings_of(checkpoint))
    prepared = []
    for number, text in enumerate(file.read_text("utf-8").splitlines(), start=1):
        if not text.strip():
            continue
        where = f"{file}:{number}"
        line = _parsed(text, where)
        pictures = [folder / name for name in line.images]
        for picture in pictures:
            if not picture.is_file():
                raise BuildError(f"{where}: no such picture: {picture.name}", "It must lie beside the file")
            digest.update(sha256_file(picture).encode())
        try:
            prepared.append(preparer([_conversation(line, pictures)], add_generation_prompt=not line.answer))
        except InputError as error:
            raise BuildError(f"{where}: {error.what}", error.next) from error
    if not prepared:
        raise BuildError(f"{file}: holds no prompt", 'Write lines such as {"ask": "What is this?"}')
    return Prompts(tuple(prepared), digest.hexdigest())


def _parsed(text: str, where: str) -> Line:
    try:
        return Line.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(key) for key in first["loc"])
        raise BuildError(
            f"{where}: {path + ': ' if path else ''}{first['msg'].lower()}",
            'A line is {"ask": "What is this?", "images": ["cat.jpg"], "answer": "a cat"}',
        ) from None


def _conversation(line: Line, pictures: list[Path]) -> list[dict[str, Any]]:
    asked: list[Any] = [Image(picture) for picture in pictures]
    turns = [{"role": "user", "content": [*asked, line.ask]}]
    return [*turns, {"role": "assistant", "content": line.answer}] if line.answer else turns


def _settings_of(checkpoint: Checkpoint) -> Artifact:
    """What the runtime's preparation reads of an artifact: the checkpoint's own files and facts."""
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
    return Artifact(checkpoint.root, manifest)
