"""transformers.js in Node, driven as its users drive it; `transformers_js.mjs` is the program it runs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen3vl_export import contract

from ..harness.sides.pytorch.inputs import Inputs
from .answer import Answer
from .npm import node, node_modules
from .pictures import Picture, png

SCRIPT = Path(__file__).with_suffix(".mjs")
DTYPES = {"int64": np.int64, "float32": np.float32}
SECONDS = 300


@dataclass(frozen=True)
class Question:
    """One prompt: the chat template's text and its pictures."""

    name: str
    text: str
    images: Sequence[Picture]


def run(
    directory: Path,
    questions: Sequence[Question],
    folder: Path,
    new_tokens: int,
    patch_dim: int,
    no_grid: bool = False,
    dtype: str = "",
) -> dict[str, Answer | str]:
    """Greedy answers by name, or the message of the runtime's error.

    Args:
        folder: an empty directory for the files that the two programs exchange.
        dtype: the precision, by transformers.js's name; "" is the one without a suffix.
        no_grid: for a prompt without a picture, omit the empty `image_grid_thw` that keeps its positions right.
    """
    prompts = []
    for question in questions:
        files = [folder / f"{question.name}-{index}.png" for index in range(len(question.images))]
        for file, image in zip(files, question.images, strict=True):
            file.write_bytes(png(image))
        prompts.append({"name": question.name, "text": question.text, "images": [str(file) for file in files]})
    job = {"model": str(directory), "dtype": dtype, "out": str(folder), "new_tokens": new_tokens, "no_grid": no_grid}
    (folder / "job.json").write_text(json.dumps({**job, "prompts": prompts}), "utf-8")
    command = [node(), str(SCRIPT), str(node_modules()), str(folder / "job.json")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert result.returncode == 0, result.stderr
    return {question.name: answer_of(folder, question.name, patch_dim) for question in questions}


def answer_of(folder: Path, name: str, patch_dim: int) -> Answer | str:
    record = json.loads((folder / f"{name}.json").read_text("utf-8"))
    if "error" in record:
        return str(record["error"])
    arrays: dict[str, Any] = {
        key: np.fromfile(folder / f"{name}.{key}.bin", DTYPES[record["types"][key]]).reshape(shape)
        for key, shape in record["shapes"].items()
    }
    inputs = Inputs(
        arrays["input_ids"],
        arrays["attention_mask"],
        arrays.get(contract.PIXEL_VALUES, np.empty((0, patch_dim), np.float32)),
        arrays.get(contract.IMAGE_GRID_THW, np.empty((0, 3), np.int64)),
    )
    return Answer(inputs, arrays["tokens"][0], arrays["logits"], computed_rows=arrays["computed_rows"])
