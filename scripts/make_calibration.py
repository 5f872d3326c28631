"""Draw the calibration prompts of the tiny checkpoint: recipes/calibration/, pictures and prompts.jsonl.

    python scripts/make_calibration.py

Questions of the kinds the model was trained on, with their answers. Every stream of random numbers is seeded with a
string that begins with "calibration", so that no picture is one of the training, of the exam or of the parity matrix.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from PIL import Image  # noqa: E402

from parity_tests.harness.cases.exam import ONE_PICTURE, ask_about_picture  # noqa: E402
from parity_tests.harness.cases.questions import GRID_KINDS, MANY_KINDS, Turn, ask_many, ask_text  # noqa: E402
from parity_tests.harness.cases.scenes import draw_scene, max_digit_rows  # noqa: E402

FOLDER = ROOT / "recipes" / "calibration"
SIZES = ((64, 64), (128, 96), (96, 160), (160, 160), (224, 160), (192, 256))  # width, height
ONE, MANY, TEXT = 36, 6, 6  # prompts with one picture, with several, with none


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    lines = []
    for name, images, turn in questions():
        files = [f"{name}-{index}.png" for index in range(len(images))]
        for file, image in zip(files, images, strict=True):
            image.quantize(64).save(FOLDER / file, optimize=True)
        lines.append({"images": files, "ask": turn.prompt, "answer": turn.answer})
    (FOLDER / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def questions() -> Iterator[tuple[str, list[Image.Image], Turn]]:
    """Name, pictures, question and answer."""
    for index in range(ONE):
        rng, turn = random.Random(f"calibration-one-{index}"), None
        size, kind = SIZES[index % len(SIZES)], ONE_PICTURE[index % len(ONE_PICTURE)]
        kind = "number" if kind in GRID_KINDS and max_digit_rows(size[1]) < 2 else kind
        while turn is None:
            image, turn = ask_about_picture(rng, size, kind)
        yield f"one-{index:02}", [image], turn
    for index in range(MANY):
        rng, turn = random.Random(f"calibration-many-{index}"), None
        while turn is None:
            pictures = [draw_scene(rng, *size, count=rng.randint(1, 3)) for size in rng.sample(SIZES[:4], 2)]
            turn = ask_many(rng, pictures, MANY_KINDS[index % len(MANY_KINDS)])
        yield f"many-{index}", [picture.image for picture in pictures], turn
    for index in range(TEXT):
        yield f"text-{index}", [], ask_text(random.Random(f"calibration-text-{index}"))


if __name__ == "__main__":
    main()
