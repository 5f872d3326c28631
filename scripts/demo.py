"""Asks a built artifact about a photograph and two drawn pictures, each at several sizes, streaming the answers.

Runs on the artifact alone: no torch, no transformers. The photograph was among the pictures the tiny model was trained
on; the drawings are made here.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image as Pillow

from parity_tests.harness.cases.picture_kinds import PHOTOGRAPH
from parity_tests.harness.cases.scenes import draw_digits, draw_scene
from qwen3vl_export.errors import Qwen3VLExportError
from qwen3vl_export.runtime import Image, Qwen3VL

ROOT = Path(__file__).parent.parent
SEED = 11


@dataclass(frozen=True)
class Exhibit:
    """A picture, the (width, height) sizes it is shown at, and what is asked about it."""

    title: str
    picture: Pillow.Image
    sizes: tuple[tuple[int, int], ...]
    questions: tuple[str, ...]


def exhibits() -> list[Exhibit]:
    photograph = Pillow.open(PHOTOGRAPH).convert("RGB")
    scene = draw_scene(random.Random(SEED), 384, 384, 3)
    digits = draw_digits(random.Random(SEED), 384, 192, rows=1, columns=4)
    return [
        Exhibit(
            f"a photograph ({PHOTOGRAPH.relative_to(ROOT)})",
            photograph,
            ((451, 300), (256, 256), (160, 240)),
            ("What is this?", "What animal is this?", "Is this a photograph or a drawing?"),
        ),
        Exhibit(
            "a drawing: " + ", ".join(f"{thing.phrase} ({thing.position})" for thing in scene.things),
            scene.image,
            ((384, 384), (256, 256), (320, 192)),
            ("Describe the picture.", "How many shapes are there?", f"Where is the {scene.things[0].name}?"),
        ),
        Exhibit(
            f"a drawing: the number {digits.rows[0]}",
            digits.image,
            ((384, 192), (256, 128), (192, 160)),
            ("What number is this?", "How many digits are there?", "What is the last digit?"),
        ),
    ]


def main() -> int:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "artifacts" / "tiny"
    try:
        model = Qwen3VL.load(path)
        for exhibit in exhibits():
            print(f"\n{exhibit.title}")
            for width, height in exhibit.sizes:
                picture = exhibit.picture.resize((width, height), Pillow.Resampling.BICUBIC)
                for question in exhibit.questions:
                    print(f"  {f'{width}x{height}':9}{question}  ", end="", flush=True)
                    for piece in model.stream([Image(picture), question]):
                        print(piece, end="", flush=True)
                    print()
    except Qwen3VLExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
