"""The evidence of one verification: `parity.json`, a JUnit file, and the summary on the terminal.

Knows outcomes and how to show them; compares nothing. Files appear whole or not at all. A stage that was not measured
is null in the JSON and "not measured" on the terminal.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from xml.etree import ElementTree

from rich.markup import escape
from rich.table import Table

from qwen3vl_export.console import Terminal
from qwen3vl_export.evidence import (
    FORMAT,
    SIGNS,
    Answers,
    CheckpointSource,
    Difference,
    Evidence,
    ExamScore,
    Hardware,
    LogitCost,
    Measures,
    NearTie,
    PrecisionCost,
    Rule,
    Speed,
    StageSummary,
)
from qwen3vl_export.evidence.answers import EXAM_STAGES, answer, lines
from qwen3vl_export.json_form import to_json
from qwen3vl_export.output import whole_file
from qwen3vl_export.promise import ROUNDED

from ..diagnosis.layer_trace import Trail
from ..judging.measures import pool_means
from ..judging.outcome import Outcome
from ..judging.verdicts import Profile
from ..plan import ORDER
from ..sides.pytorch.device import CPU
from .tasks import task_scores

PACKAGES = ("qwen3vl-export", "torch", "transformers", "onnxruntime", "numpy", "pillow", "tokenizers")
PRECISION_STAGES = ("prefill", "decode")  # the whole artifact over the prompt, and every token after it
SHOWN_FAILURES = 12
SHOWN_REPLAYS = 3
NOTHING = "-"
SCALED = "scaled_"  # in the name of a measure: in units of the reference


@dataclass(frozen=True)
class Report:
    """All outcomes of a run and what they are based on."""

    artifact: str
    manifest_sha256: str
    checkpoint: CheckpointSource
    matrix: str
    seed: int
    profile: Profile
    outcomes: Sequence[Outcome]
    planned: int
    left_out: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    reference_results: dict[str, int] | None = None  # PyTorch's, by `Reference.counts`
    speed: Speed | None = None
    trails: Sequence[Trail] = ()  # layer by layer, where that was asked for
    hardware: Hardware | None = None  # None is this machine's
    tasks: Mapping[str, str | None] = field(default_factory=dict)  # sha256 of each that was asked, by name
    pieces: Mapping[str, int] | None = None  # that each graph of the artifact was run in; None if it was run whole
    device: str | None = None  # that PyTorch computed on

    @property
    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if not outcome.passed]

    @property
    def passed(self) -> bool:
        """Whether everything planned was carried out and passed; a run that compared nothing did not."""
        return bool(self.outcomes) and len(self.outcomes) == self.planned and not self.failures

    def worst(self, stage: str, rule: Rule) -> float | None:
        """The value of a rule's measure that comes closest to breaking it, NaN first; None if never measured."""
        values = [o.measures.get(rule.measure) for o in self.outcomes if o.stage == stage]
        numbers = [float(value) for value in values if value is not None]
        if not numbers:
            return None
        if any(number != number for number in numbers):
            return float("nan")
        if rule.kind == "equals":
            return max(numbers, key=lambda number: abs(number - rule.limit))
        return min(numbers) if rule.kind == "min" else max(numbers)

    def summary(self) -> dict[str, StageSummary | None]:
        """By stage the profile judges; None for a stage that was not run."""
        return {stage: self.summary_of(stage) for stage in ORDER if stage in self.profile.rules}

    def summary_of(self, stage: str) -> StageSummary | None:
        outcomes = [outcome for outcome in self.outcomes if outcome.stage == stage]
        worst = {rule.measure: self.worst(stage, rule) for rule in with_absolute(self.profile.rules[stage])}
        failed = sum(not outcome.passed for outcome in outcomes)
        return StageSummary(len(outcomes), failed, worst) if outcomes else None

    def precision(self) -> PrecisionCost | None:
        """What this precision costs against PyTorch in float32: logits pooled over every position of the stages
        `PRECISION_STAGES`, and answers right; None where no logits were compared."""
        cost = self.logit_cost(PRECISION_STAGES)
        if cost is None:
            return None
        exams = [exam_score(outcome) for outcome in self.outcomes if outcome.stage == "accuracy"]
        score = exams[0] if exams else ExamScore(None, None, None)
        return PrecisionCost(**vars(cost), **vars(score))

    def logit_cost(self, stages: Sequence[str]) -> LogitCost | None:
        """How far logits are apart, pooled over every position of some stages; None where none were compared."""
        parts = self.measures_of(stages)
        worst = [float(value) for part in parts if (value := part.get("worst_kl")) is not None]
        if not parts:
            return None
        return LogitCost(
            positions=sum(int(part["positions"] or 0) for part in parts),
            mean_kl=pool_means(parts, "mean_kl"),
            worst_kl=max(worst, key=lambda value: (value != value, value)) if worst else None,
            top1_agreement=pool_means(parts, "top1_agreement"),
        )

    def measures_of(self, stages: Sequence[str]) -> list[Measures]:
        """The measures of every check of logits in some stages."""
        return [o.measures for o in self.outcomes if o.stage in stages and o.measures.get("positions")]

    def answers(self) -> Answers:
        """Whether the graph is right, and what its precision costs."""
        graph, cost = answer(self.outcomes, self.profile)
        rounding = self.logit_cost([f"{ROUNDED}decoder"])
        return Answers(graph, cost, rounding, pool_means(self.measures_of(["teacher_forced"]), "text_loss"))

    def evidence(self) -> Evidence:
        """What `parity.json` holds."""
        exam = {outcome.case: exam_score(outcome) for outcome in self.outcomes if outcome.stage in EXAM_STAGES}
        near_ties = (
            NearTie(check=outcome.id, **{field.name: getattr(tie, field.name) for field in fields(Difference)})
            for outcome in self.outcomes
            for tie in outcome.near_ties
        )
        return Evidence(
            format=FORMAT,
            passed=self.passed,
            artifact=self.artifact,
            manifest_sha256=self.manifest_sha256,
            checkpoint=self.checkpoint,
            matrix=self.matrix,
            seed=self.seed,
            planned=self.planned,
            carried_out=len(self.outcomes),
            summary=self.summary(),
            precision=self.precision(),
            exam=exam or None,
            near_ties=tuple(near_ties),
            left_out=self.left_out,
            seconds={name: round(value, 2) for name, value in self.seconds.items()},
            speed=self.speed,
            reference_results=self.reference_results,
            versions=versions(),
            hardware=self.hardware or hardware(),
            profile=self.profile,
            checks=tuple(outcome.result for outcome in self.outcomes),
            bisect=tuple(trail.record for trail in self.trails) or None,
            answers=self.answers() if self.outcomes else None,
            pieces=self.pieces,
            device=self.device,
            tasks=task_scores(self.outcomes, self.tasks) or None,
        )

    def to_json(self) -> str:
        """The text of `parity.json`."""
        return to_json(self.evidence(), indent=1) + "\n"

    def to_junit(self) -> str:
        """One test case per check."""
        suite = ElementTree.Element(
            "testsuite",
            name=f"parity {self.artifact}",
            tests=str(self.planned),
            failures=str(len(self.failures)),
            errors=str(self.planned - len(self.outcomes)),
            time=f"{self.seconds.get('total', 0.0):.2f}",
        )
        for outcome in self.outcomes:
            attributes = {"classname": f"parity.{outcome.stage}", "name": outcome.id, "time": f"{outcome.seconds:.3f}"}
            case = ElementTree.SubElement(suite, "testcase", attributes)
            if not outcome.passed:
                ElementTree.SubElement(case, "failure", message=outcome.message)
        ElementTree.indent(suite)
        return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def with_absolute(rules: Sequence[Rule]) -> Iterator[Rule]:
    """Rules, each on a scaled difference followed by itself on the difference as it is, which has no limit."""
    for rule in rules:
        yield rule
        if SCALED in rule.measure:
            yield replace(rule, measure=rule.measure.replace(SCALED, "", 1), limit=math.inf)


def exam_score(outcome: Outcome) -> ExamScore:
    """The score of a check of the exam."""
    return ExamScore(*(outcome.measures.get(field.name) for field in fields(ExamScore)))


def write(path: Path, text: str) -> None:
    """The whole file or none of it."""
    with whole_file(path) as partial:
        partial.write_text(text, "utf-8")


def versions() -> dict[str, str | None]:
    """Installed versions, null for a package that is not installed."""
    releases: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            releases[package] = version(package)
        except PackageNotFoundError:
            releases[package] = None
    return releases


def hardware() -> Hardware:
    """Processor, cores and operating system."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return Hardware(
        processor=names[0] if names else platform.processor() or None,
        cores=os.cpu_count(),
        system=f"{platform.system()} {platform.machine()}",
    )


def show(report: Report, screen: Terminal, command: str = "") -> None:
    """A line per measure, then near-ties, failures and what was left out; the verdict last, where a terminal stops.

    Args:
        command: verifies this artifact again; printed with the case and the seed of each failure.
    """
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("stage", "passed", "measure", "worst", "limit", ""):
        table.add_column(name, justify="right" if name in ("passed", "worst", "limit") else "left")
    for stage, entry in report.summary().items():
        rules = tuple(with_absolute(report.profile.rules.get(stage, ())))
        if entry is None:
            table.add_row(stage, NOTHING, "[dim]not measured[/]")
            continue
        count = f"{entry.checks - entry.failed} of {entry.checks}"
        for index, rule in enumerate(rules):
            value = entry.worst[rule.measure]
            good = value is not None and value == value and rule.holds(value)
            table.add_row(
                stage if index == 0 else "",
                ("" if index else f"[bold red]{count}[/]" if entry.failed else count),
                rule.measure,
                NOTHING if value is None else f"{value:.7g}" if rule.kind == "min" else f"{value:.3g}",
                *(
                    (f"{SIGNS[rule.kind]} {rule.limit:.6g}", "[green]ok[/]" if good else "[bold red]FAILED[/]")
                    if math.isfinite(rule.limit)
                    else ("", "")
                ),
            )
    screen.print(table)
    for name, tie in ((outcome.id, tie) for outcome in report.outcomes for tie in outcome.near_ties):
        screen.print(
            f"[yellow]near-tie[/] {escape(name)}: token {tie.step} of row {tie.row} is {tie.candidate_token}, PyTorch "
            f"chose {tie.reference_token}; logits differ by {tie.candidate_gap:.1e} and {tie.reference_gap:.1e}"
        )
    for outcome in report.outcomes:
        if ties := outcome.measures.get("routing_ties"):
            screen.print(
                f"[yellow]near-tied routes[/] {escape(outcome.id)}: {ties} choices of experts are not PyTorch's, whose "
                f"router logits differ by {outcome.measures['routing_gap']:.1e} of the largest; routes are made alike"
            )
    for outcome in report.failures[:SHOWN_FAILURES]:
        screen.print(f"[bold red]failed[/] {escape(outcome.message)}", soft_wrap=True)
    if len(report.failures) > SHOWN_FAILURES:
        screen.print(f"[red]… and {len(report.failures) - SHOWN_FAILURES} more, all in parity.json[/]")
    for trail in report.trails:
        screen.print(f"[bold]bisect[/] {escape(trail.message)}", soft_wrap=True)
    failed = list(dict.fromkeys(outcome.case for outcome in report.failures if outcome.stage not in EXAM_STAGES))
    for case in failed[:SHOWN_REPLAYS] if command else ():
        screen.print(f"[dim]replay:[/] {escape(command)} --case {case} --seed {report.seed} --bisect", soft_wrap=True)
    for name, reason in report.left_out.items():
        screen.print(f"[dim]not checked: {escape(name)} ({escape(reason)})[/]")
    for line in lines(report.evidence()) if report.outcomes else ():
        screen.print(escape(line), soft_wrap=True)
    verdict = "[bold green]passed[/]" if report.passed else "[bold red]FAILED[/]"
    screen.print(f"{verdict}: {counted(report)} in {time_spent(report)}")


def counted(report: Report) -> str:
    """`165 of 165 checks of the quick matrix`; of a run that did not pass, how many failed and how many did not run."""
    checks = f"{report.planned} checks of the {report.matrix} matrix"
    if report.passed:
        return f"{report.planned} of {checks}"
    missing = report.planned - len(report.outcomes)
    return f"{len(report.failures)} of {checks} failed" + (f", {missing} did not run" if missing else "")


def time_spent(report: Report) -> str:
    """`9 s: onnxruntime 2.1 s (23 %), PyTorch 5.4 s for 33 of 210 results, the others from earlier runs`."""
    total, torch, ours = (report.seconds.get(key, 0.0) for key in ("total", "pytorch", "artifact"))
    text = f"{total:.0f} s: onnxruntime {ours:.1f} s ({ours / max(total, 1e-9):.0%})"
    text += " a few layers at a time" if report.pieces else ""
    text += f", PyTorch {torch:.1f} s"
    text += f" on {report.device}" if report.device not in (None, CPU.type) else ""
    counts = report.reference_results or {}
    if counts.get("streamed"):
        text += " with the weights of one module in memory at a time"
    if counts.get("from_disk"):
        results = counts["computed"] + counts["from_disk"]
        text += f" for {counts['computed']} of {results} results, the others from earlier runs"
    return text
