"""`parity.html`: the evidence as one self-contained page, verdict first, for a person.

Made from what `parity.json` holds, the matrix (to draw the pictures again) and the history. Shapes data for the
template `report.html.j2`; judges nothing.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

import qwen3vl_export

from ..cases.matrix import Case, Matrix
from ..cases.picture_kinds import PICTURE, parse
from ..judging.measures import pool_means
from ..judging.outcome import numbers_back
from ..judging.verdicts import SIGNS
from ..sides.pixel_reference import load_file
from .charts import Axis, Heatmap, heatmap, line, log_axis

TEMPLATE = "report.html.j2"
THUMBNAIL = (180, 130)
WORST = 6
RUNS = 40
CHART = {"width": 720, "height": 260, "left": 58, "right": 708, "top": 14, "bottom": 214}
AREAS = {
    "weights": "quantized weights",
    "calibrated_weights": "calibrated weights",
    "prompt": "prompt text and tokens",
    "preprocess": "resized pixels",
    "positions": "3-axis positions",
    "vision": "vision encoder",
    "embeddings": "embeddings",
    "decoder": "decoder alone",
    "prefill": "whole prefill",
    "teacher_forced": "a long text after the prompt",
    "chunked": "prefill in chunks",
    "decode": "decoding with a cache",
    "generate": "greedy tokens",
    "dequantized_vision": "vision encoder, on its own weights",
    "dequantized_embeddings": "embeddings, on their own weights",
    "dequantized_decoder": "decoder alone, on its own weights",
    "dequantized_decode": "decoding with a cache, on its own weights",
    "dequantized_generate": "greedy tokens, on its own weights",
    "exam": "exam",
    "accuracy": "accuracy",
}
HEATMAPS = {"vision": "Vision features", "prefill": "Logits of the whole prefill"}

Json = dict[str, Any]


def render(evidence: Json, matrix: Matrix, runs: Sequence[Json] = ()) -> str:
    """The page.

    Args:
        evidence: what `parity.json` holds.
        matrix: the matrix file; the evidence's seed draws its random cases.
        runs: lines of the history about this artifact, oldest first.
    """
    values: Json = numbers_back(evidence)
    cases = {case.name: case for case in matrix.model_copy(update={"seed": values["seed"]}).of_tier("full")}
    failures = [check for check in values["checks"] if not check["passed"]]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parent, Path(qwen3vl_export.__file__).parent]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"short": short, "percent": percent}
    return environment.get_template(TEMPLATE).render(
        evidence=values,
        failures=failures,
        stages=list(stages(values)),
        maps=[(title, found) for stage, title in HEATMAPS.items() if (found := error_map(values, cases, stage))],
        trails=[trail(one, values["profile"]["settings"]) for one in values["bisect"] or ()],
        worst=list(worst(values, cases, matrix)),
        tokens=tokens(values),
        drift=drift(runs),
        chart=CHART,
        areas=AREAS,
    )


def short(value: float | bool | None) -> str:
    """A number with the digits that matter: cosines near one keep what tells them from it."""
    if value is None:
        return "not measured"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not math.isfinite(value):
        return {math.inf: "infinite", -math.inf: "-infinite"}.get(value, "not a number")
    if 0.99 < value < 1:
        return f"{value:.7f}".rstrip("0") if value < 1 - 1e-6 else f"1 - {1 - value:.0e}"
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e6 else f"{value:.2g}"


def percent(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.4g} %"


def stages(values: Json) -> Iterator[Json]:
    """A row for each judged measure: its worst value, its limit, and how much of the limit is used."""
    for stage, entry in values["summary"].items():
        for index, rule in enumerate(values["profile"]["rules"].get(stage, ())):
            value = entry["worst"][rule["measure"]] if entry else None
            yield {
                "stage": stage if index == 0 else "",
                "area": AREAS.get(stage, stage),
                "checks": entry["checks"] if entry else 0,
                "failed": entry["failed"] if entry else 0,
                "measure": rule["measure"].replace("_", " "),
                "value": value,
                "limit": f"{SIGNS[rule['kind']]} {short(rule['limit'])}",
                "used": used(value, rule),
                "reason": rule["reason"],
            }


def used(value: float | None, rule: Json) -> float | None:
    """Share of the limit that is used up, 1 at the limit; None where that means nothing."""
    if value is None or not math.isfinite(value):
        return None
    if rule["kind"] == "equals":
        return 0.0 if value == rule["limit"] else math.inf
    if rule["kind"] == "max":
        return value / rule["limit"] if rule["limit"] else None
    slack = 1 - rule["limit"]
    return max(0.0, 1 - value) / slack if slack else None


def error_map(values: Json, cases: Mapping[str, Case], stage: str) -> Heatmap | None:
    """Largest error of a stage over the sizes of all cases with a single picture."""
    found = {}
    for check in values["checks"]:
        case = cases.get(check["case"])
        if check["stage"] != stage or case is None or case.batch or case.video or len(case.images) != 1:
            continue
        match = parse(PICTURE, case.images[0])
        error = check["measures"].get("max_abs")
        found[case.name] = (int(match["width"]), int(match["height"]), error, not check["passed"])
    return heatmap(found)


def trail(found: Json, settings: Mapping[str, float]) -> Json:
    """The error from layer to layer, a curve for each stage of the build."""
    limit = settings["divergence_nmse"]
    outputs = [point for point in found["points"] if point["side"] == "output"]
    axis = log_axis([limit, *(p["nmse"] for p in outputs if p["nmse"] is not None)], CHART["bottom"], CHART["top"])
    curves = []
    for stage in (stage for stage in found["stages"] if "/" not in stage):
        points = [point for point in outputs if point["stage"] == stage]
        curves.append({"stage": stage, "runs": line([p["nmse"] for p in points], axis, CHART["left"], CHART["right"])})
    last = [point for point in outputs if point["stage"] == found["stages"][-1]]
    first = next((point for point in found["points"] if point["diverged"]), None)
    return {**found, "axis": axis, "ticks": axis.ticks(2), "curves": curves, "bounds": bounds(last), "limit": limit} | {
        "first": first
    }


def bounds(points: Sequence[Json]) -> list[tuple[float, str]]:
    """Where each layer of a tower begins on the axis, and its number."""
    width = (CHART["right"] - CHART["left"]) / max(1, len(points) - 1)
    found: dict[str, float] = {}
    for index, point in enumerate(points):
        parts = point["module"].split(".")
        if parts[0] in ("layers", "blocks"):
            found.setdefault(parts[1], CHART["left"] + index * width)
    every = math.ceil(len(found) / 16) if found else 1
    return [(place, name) for name, place in found.items() if int(name) % every == 0]


def worst(values: Json, cases: Mapping[str, Case], matrix: Matrix) -> Iterator[Json]:
    """The cases that come closest to a limit, or break it, each with its pictures."""
    rules = values["profile"]["rules"]
    closest: dict[str, tuple[float, Json, Json]] = {}
    for check in values["checks"]:
        if check["case"] not in cases:
            continue
        shares = [
            (math.inf if not verdict["passed"] else used(verdict["value"], verdict) or 0.0, verdict)
            for verdict in check["verdicts"]
            if verdict["measure"] in {rule["measure"] for rule in rules[check["stage"]]}
        ] or [(math.inf, {"measure": check["error"] or "", "value": None, "passed": False})]
        share, verdict = max(shares, key=lambda pair: pair[0])
        if check["case"] not in closest or share > closest[check["case"]][0]:
            closest[check["case"]] = (share, verdict, check)
    drawn = matrix.model_copy(update={"seed": values["seed"]})
    for share, verdict, check in sorted(closest.values(), key=lambda found: -found[0])[:WORST]:
        case = cases[check["case"]]
        pictures = [] if case.is_vision_only else [one for prompt in drawn.draw(case) for one in pictures_of(prompt)]
        yield {
            "case": case,
            "check": check,
            "verdict": verdict,
            "share": share,
            "pictures": [thumbnail(one) for one in pictures[:3]],
            "more": max(0, len(pictures) - 3),
        }


def pictures_of(prompt: Any) -> list[Any]:
    return [*prompt.images, *prompt.frames[:: max(1, len(prompt.frames) - 1)]]


def thumbnail(picture: Image.Image | bytes) -> str:
    """A small picture as a data URL."""
    image = load_file(picture) if isinstance(picture, bytes) else picture
    small = image.convert("RGB")
    small.thumbnail(THUMBNAIL)
    buffer = BytesIO()
    small.save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def tokens(values: Json) -> Json:
    """How far the sides agree on tokens: teacher-forced over all positions, and in generation."""

    def of(stage: str) -> list[Json]:
        return [check["measures"] for check in values["checks"] if check["stage"] == stage and check["measures"]]

    logits = {
        stage: {
            "positions": sum(measures.get("positions") or 0 for measures in of(stage)),
            "top1": pool_means(of(stage), "top1_agreement"),
            "jaccard": pool_means(of(stage), "jaccard_10"),
            "kl": pool_means(of(stage), "mean_kl"),
        }
        for stage in ("decoder", "prefill", "teacher_forced", "decode")
        if of(stage)
    }
    made = of("generate")
    return {
        "logits": logits,
        "tokens": sum(measures["tokens"] for measures in made),
        "cases": len(made),
        "identical": sum(m["unexplained_differences"] == 0 and m["near_ties"] == 0 for m in made),
        "near_ties": sum(measures["near_ties"] for measures in made),
        "unexplained": sum(measures["unexplained_differences"] for measures in made),
    }


def drift(runs: Sequence[Json]) -> Json | None:
    """The worst errors of the last runs as curves; None before there are two."""
    kept = list(runs)[-RUNS:]
    if len(kept) < 2:
        return None
    curves = {}
    for stage in ("vision", "prefill"):
        found = [numbers_back(run["worst"].get(stage, {})).get("max_abs") for run in kept]
        curves[AREAS[stage]] = [value if isinstance(value, int | float) else None for value in found]
    numbers = [value for curve in curves.values() for value in curve if value]
    if not numbers:
        return None
    axis: Axis = log_axis(numbers, 120, 12)
    return {
        "curves": [(name, line(curve, axis, 58, 708)) for name, curve in curves.items()],
        "ticks": axis.ticks(),
        "dots": [
            (
                58 + index * 650 / (len(kept) - 1),
                run["passed"],
                f"{run['time']}: {run['matrix']}, {run['failed']} failed",
            )
            for index, run in enumerate(kept)
        ],
        "first": kept[0]["time"][:10],
        "last": kept[-1]["time"][:10],
        "runs": len(kept),
    }
