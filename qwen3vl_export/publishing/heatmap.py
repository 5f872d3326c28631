"""The parity heatmap: a row for each case, a column for each stage, darker where a difference is close to its limit.

Draws the evidence; judges nothing. Uses Pillow's built-in font, so that equal evidence gives equal bytes.
"""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from ..evidence import CheckResult, Evidence
from ..evidence.answers import QUESTION_STAGES

HEATMAP = "parity.png"
CELL, ROW = 92, 20  # pixels
MARGIN = 12
NAMES = 250  # width of the column of case names
INK, PAPER, ABSENT = (36, 41, 47), (255, 255, 255), (235, 237, 240)
EXACT, NEAR, FAILED = (46, 160, 67), (240, 196, 25), (207, 34, 46)


def heatmap(evidence: Evidence) -> Image.Image:
    """Draw the heatmap. A cell's number is the largest difference in percent of its limit; `=` means exact."""
    stages = [stage for stage, entry in evidence.summary.items() if entry and stage not in QUESTION_STAGES]
    cases = list(dict.fromkeys(check.case for check in evidence.checks if check.stage in stages))
    cells = {(check.case, check.stage): check for check in evidence.checks}
    size = (NAMES + CELL * len(stages) + 2 * MARGIN, ROW * (len(cases) + 1) + 2 * MARGIN)
    image = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    for column, stage in enumerate(stages):
        draw.text((MARGIN + NAMES + CELL * column + 4, MARGIN + 3), stage, INK, font)
    for row, case in enumerate(cases, start=1):
        top = MARGIN + ROW * row
        draw.text((MARGIN, top + 3), case, INK, font)
        for column, stage in enumerate(stages):
            colour, label = cell(cells.get((case, stage)))
            left = MARGIN + NAMES + CELL * column
            draw.rectangle((left, top, left + CELL - 2, top + ROW - 2), fill=colour)
            draw.text((left + 4, top + 3), label, INK, font)
    return image


def cell(check: CheckResult | None) -> tuple[tuple[int, int, int], str]:
    """Colour and label of one check."""
    if check is None:
        return ABSENT, ""
    if not check.passed:
        return FAILED, "failed"
    share = max((verdict.share(verdict.value) or 0.0 for verdict in check.verdicts), default=0.0)
    colour = tuple(round(a + (b - a) * min(1.0, share)) for a, b in zip(EXACT, NEAR, strict=True))
    return (colour[0], colour[1], colour[2]), "=" if share == 0 else f"{100 * share:.2g} %"
