"""The sections of `parity.html` as data: rows, maps, curves and the cases that came closest to a limit.

Knows evidence, cases and charts; nothing about how a section looks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from qwen3vl_export.evidence import SIGNS, CheckResult, Evidence, GraphTrail, Measures, Point, Verdict
from qwen3vl_export.evidence.answers import EXAM, task_of
from qwen3vl_export.evidence.tasks import ALL, AnsweredQuestion, Score

from ..cases.matrix import Case
from ..cases.picture_kinds import PICTURE, parse
from ..judging.measures import pool_means
from .charts import Axis, Heatmap, heatmap, line, log_axis
from .history import PastRun

WORST = 6
PARTED = 50  # questions of a task that are shown with both answers
RUNS = 40
CHART = {"width": 720, "height": 260, "left": 58, "right": 708, "top": 14, "bottom": 214}
DRIFT_LEFT, DRIFT_RIGHT = 58, 708
AREAS = {
    "sampling": "generation settings",
    "weights": "quantized weights",
    "calibrated_weights": "calibrated weights",
    "source_weights": "weights carried over",
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
    "hidden_states": "hidden states",
    "answer_logits": "logits of yes and no",
    "embedding": "embeddings end to end",
    "score": "scores end to end",
    "dequantized_vision": "vision encoder, on its own weights",
    "dequantized_embeddings": "embeddings, on their own weights",
    "dequantized_decoder": "decoder alone, on its own weights",
    "dequantized_decode": "decoding with a cache, on its own weights",
    "dequantized_generate": "greedy tokens, on its own weights",
    "dequantized_chunked": "prefill in chunks, on its own weights",
    "rounded_vision": "vision encoder, activations rounded or not",
    "rounded_decoder": "decoder alone, activations rounded or not",
    "quantized_cache": "keys and values in the cache",
    "packaged": "the second decoder beside the first",
    "dequantized_hidden_states": "hidden states, on its own weights",
    "dequantized_answer_logits": "logits of yes and no, on its own weights",
    "exam": "exam",
    "accuracy": "accuracy",
    "task": "questions of tasks",
}


@dataclass(frozen=True)
class MeasureRow:
    """A judged measure of a stage: its worst value, its limit, and the share of the limit that is used.

    Attributes:
        stage: empty but in the first row of a stage.
    """

    stage: str
    area: str
    checks: int
    failed: int
    measure: str
    value: float | None
    limit: str
    used: float | None
    reason: str


@dataclass(frozen=True)
class Curve:
    """A curve of a chart: its name, and the points of each unbroken part."""

    name: str
    parts: Sequence[str]


@dataclass(frozen=True)
class TrailChart:
    """The error from layer to layer, a curve for each stage of the build.

    Attributes:
        bounds: where a layer begins on the axis, and its number.
    """

    trail: GraphTrail
    axis: Axis
    limit: float
    curves: Sequence[Curve]
    bounds: Sequence[tuple[float, str]]


@dataclass(frozen=True)
class ClosestCase:
    """A case that comes close to a limit, or breaks it: the check and the verdict that do."""

    case: Case
    check: CheckResult
    verdict: Verdict
    share: float


@dataclass(frozen=True)
class LogitAgreement:
    """How far the logits of a stage agree, on average over its positions; KL in nats."""

    positions: int
    top1: float | None
    jaccard: float | None
    kl: float | None


@dataclass(frozen=True)
class TokenAgreement:
    """How far the sides agree on tokens: teacher-forced over all positions, and in generation."""

    logits: Mapping[str, LogitAgreement]
    tokens: int
    cases: int
    identical: int
    near_ties: int
    unexplained: int


@dataclass(frozen=True)
class TaskTable:
    """The scores of a task, a row for each kind of question, and questions that the sides answered differently.

    Attributes:
        parted: the first of them.
    """

    name: str
    is_exam: bool
    sha256: str | None
    rows: Sequence[tuple[str, Score]]
    parted: Sequence[AnsweredQuestion]
    parted_count: int


@dataclass(frozen=True)
class DriftChart:
    """The worst errors of the last runs as curves.

    Attributes:
        dots: of each run: x, whether it passed, and its title.
    """

    curves: Sequence[Curve]
    axis: Axis
    dots: Sequence[tuple[float, bool, str]]
    runs: Sequence[PastRun]


def short(value: float | bool | None) -> str:
    """A number with its significant digits; a cosine near 1 keeps the digits that differ from 1."""
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


def measure_rows(evidence: Evidence) -> Iterator[MeasureRow]:
    """A row for each judged measure."""
    for stage, entry in evidence.summary.items():
        for index, rule in enumerate(evidence.profile.rules.get(stage, ())):
            value = entry.worst[rule.measure] if entry else None
            yield MeasureRow(
                stage=stage if index == 0 else "",
                area=AREAS.get(stage, stage),
                checks=entry.checks if entry else 0,
                failed=entry.failed if entry else 0,
                measure=rule.measure.replace("_", " "),
                value=value,
                limit=f"{SIGNS[rule.kind]} {short(rule.limit)}",
                used=rule.share(value),
                reason=rule.reason,
            )


def error_map(evidence: Evidence, cases: Mapping[str, Case], stage: str) -> Heatmap | None:
    """Largest error of a stage over the sizes of all cases with a single picture."""
    errors = {}
    for check in evidence.checks:
        case = cases.get(check.case)
        if check.stage != stage or case is None or case.batch or case.video or len(case.images) != 1:
            continue
        match = parse(PICTURE, case.images[0])
        error = check.measures.get("max_abs")
        errors[case.name] = (int(match["width"]), int(match["height"]), error, not check.passed)
    return heatmap(errors)


def trail_chart(trail: GraphTrail, settings: Mapping[str, float]) -> TrailChart:
    """The chart of a trail.

    Args:
        settings: of the profile.
    """
    limit = settings["divergence_nmse"]
    outputs = [point for point in trail.points if point.side == "output"]
    axis = log_axis([limit, *(p.nmse for p in outputs if p.nmse is not None)], CHART["bottom"], CHART["top"])
    curves = []
    for stage in (stage for stage in trail.stages if "/" not in stage):
        errors = [point.nmse for point in outputs if point.stage == stage]
        curves.append(Curve(stage, line(errors, axis, CHART["left"], CHART["right"])))
    last = [point for point in outputs if point.stage == trail.stages[-1]]
    return TrailChart(trail, axis, limit, curves, layer_bounds(last))


def layer_bounds(points: Sequence[Point]) -> list[tuple[float, str]]:
    """Where each layer of a tower begins on the axis, and its number."""
    width = (CHART["right"] - CHART["left"]) / max(1, len(points) - 1)
    starts: dict[str, float] = {}
    for index, point in enumerate(points):
        parts = point.module.split(".")
        if parts[0] in ("layers", "blocks"):
            starts.setdefault(parts[1], CHART["left"] + index * width)
    every = math.ceil(len(starts) / 16) if starts else 1
    return [(start, name) for name, start in starts.items() if int(name) % every == 0]


def closest_cases(evidence: Evidence, cases: Mapping[str, Case]) -> list[ClosestCase]:
    """The cases that come closest to a limit, or break it, worst first."""
    closest: dict[str, ClosestCase] = {}
    for check in evidence.checks:
        if check.case not in cases:
            continue
        judged = {rule.measure for rule in evidence.profile.rules[check.stage]}
        shares = [
            (math.inf if not verdict.passed else verdict.share(verdict.value) or 0.0, verdict)
            for verdict in check.verdicts
            if verdict.measure in judged
        ] or [(math.inf, Verdict(check.error or "", "equals", 0, None, False))]
        share, verdict = max(shares, key=lambda pair: pair[0])
        if check.case not in closest or share > closest[check.case].share:
            closest[check.case] = ClosestCase(cases[check.case], check, verdict, share)
    return sorted(closest.values(), key=lambda entry: -entry.share)[:WORST]


def token_agreement(evidence: Evidence) -> TokenAgreement:
    """How far the sides agree on tokens."""

    def measures_of(stage: str) -> list[Measures]:
        return [check.measures for check in evidence.checks if check.stage == stage and check.measures]

    def total(parts: Sequence[Measures], measure: str) -> int:
        return sum(int(part.get(measure) or 0) for part in parts)

    logits = {
        stage: LogitAgreement(
            positions=total(parts, "positions"),
            top1=pool_means(parts, "top1_agreement"),
            jaccard=pool_means(parts, "jaccard_10"),
            kl=pool_means(parts, "mean_kl"),
        )
        for stage in ("decoder", "prefill", "teacher_forced", "decode")
        if (parts := measures_of(stage))
    }
    answers = measures_of("generate")
    return TokenAgreement(
        logits=logits,
        tokens=total(answers, "tokens"),
        cases=len(answers),
        identical=sum(part["unexplained_differences"] == 0 and part["near_ties"] == 0 for part in answers),
        near_ties=total(answers, "near_ties"),
        unexplained=total(answers, "unexplained_differences"),
    )


def task_tables(evidence: Evidence) -> Iterator[TaskTable]:
    """The table of each task; the exam's comes first."""
    for name, task in (evidence.tasks or {}).items():
        parted = [
            question
            for check in evidence.checks
            if name == task_of(check.stage, check.case)
            for question in check.answers or ()
            if not question.same
        ]
        rows = [*task.kinds.items(), *([(ALL, task.every)] if len(task.kinds) > 1 else [])]
        yield TaskTable(name, name == EXAM, task.sha256, rows, parted[:PARTED], len(parted))


def drift_chart(runs: Sequence[PastRun]) -> DriftChart | None:
    """The chart of the last runs; None before there are two."""
    last = list(runs)[-RUNS:]
    if len(last) < 2:
        return None
    errors = {
        AREAS[stage]: [run.worst.get(stage, {}).get("max_abs") for run in last] for stage in ("vision", "prefill")
    }
    numbers = [value for values in errors.values() for value in values if value]
    if not numbers:
        return None
    axis = log_axis(numbers, 120, 12)
    step = (DRIFT_RIGHT - DRIFT_LEFT) / (len(last) - 1)
    return DriftChart(
        curves=[Curve(name, line(values, axis, DRIFT_LEFT, DRIFT_RIGHT)) for name, values in errors.items()],
        axis=axis,
        dots=[
            (DRIFT_LEFT + index * step, run.passed, f"{run.time}: {run.matrix}, {run.failed} failed")
            for index, run in enumerate(last)
        ],
        runs=last,
    )
