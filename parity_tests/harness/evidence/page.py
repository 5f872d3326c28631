"""`parity.html`: the evidence as one self-contained page, verdict first, for a person.

Made from the evidence, the matrix (to draw the pictures again) and the history. Fills the template `report.html.j2`
with the sections of `sections.py`; judges nothing.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path

import jinja2
from PIL import Image

import qwen3vl_export
from qwen3vl_export.evidence import Evidence
from qwen3vl_export.evidence.answers import lines
from qwen3vl_export.evidence.tasks import points

from ..cases.matrix import Case, Matrix, Prompt
from ..sides.pytorch.pixel_reference import load_file
from .history import PastRun
from .sections import (
    AREAS,
    CHART,
    closest_cases,
    drift_chart,
    error_map,
    measure_rows,
    percent,
    short,
    task_tables,
    token_agreement,
    trail_chart,
)

TEMPLATE = "report.html.j2"
THUMBNAIL = (180, 130)
SHOWN_PICTURES = 3  # of a case
HEATMAPS = {"vision": "Vision features", "prefill": "Logits of the whole prefill"}


def render(evidence: Evidence, matrix: Matrix, runs: Sequence[PastRun] = ()) -> str:
    """The page.

    Args:
        matrix: the matrix file; the evidence's seed draws its random cases.
        runs: the history of this artifact, oldest first.
    """
    drawn = matrix.model_copy(update={"seed": evidence.seed})
    cases = {case.name: case for case in drawn.of_tier("full")}
    closest = closest_cases(evidence, cases)
    maps = {title: error_map(evidence, cases, stage) for stage, title in HEATMAPS.items()}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parent, Path(qwen3vl_export.__file__).parent]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"short": short, "percent": percent, "points": points}
    return environment.get_template(TEMPLATE).render(
        evidence=evidence,
        answers=list(lines(evidence)) if evidence.checks else [],
        hardware=asdict(evidence.hardware),
        failures=evidence.failures,
        rows=list(measure_rows(evidence)),
        maps={title: errors for title, errors in maps.items() if errors},
        trails=[trail_chart(trail, evidence.profile.settings) for trail in evidence.bisect or ()],
        closest=closest,
        pictures={entry.case.name: thumbnails(entry.case, drawn) for entry in closest},
        shown_pictures=SHOWN_PICTURES,
        tokens=token_agreement(evidence),
        tasks=list(task_tables(evidence)),
        drift=drift_chart(runs),
        chart=CHART,
        areas=AREAS,
    )


def thumbnails(case: Case, matrix: Matrix) -> list[str]:
    """The pictures of a case as data URLs; the first and the last frame of a video."""
    return (
        []
        if case.is_vision_only
        else [thumbnail(picture) for prompt in matrix.draw(case) for picture in pictures_of(prompt)]
    )


def pictures_of(prompt: Prompt) -> list[Image.Image | bytes]:
    return [*prompt.images, *prompt.frames[:: max(1, len(prompt.frames) - 1)]]


def thumbnail(picture: Image.Image | bytes) -> str:
    """A small picture as a data URL."""
    image = load_file(picture) if isinstance(picture, bytes) else picture
    small = image.convert("RGB")
    small.thumbnail(THUMBNAIL)
    buffer = BytesIO()
    small.save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
