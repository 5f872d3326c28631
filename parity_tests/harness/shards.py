"""A verification in parts: its units, the results of some of them, and all results merged.

A unit is the smallest piece of work: all checks of a case, the generation settings, the quantized weights of a graph,
or the exam, whose groups are summed up at its end. A part is the JSON result of some units; merged, the parts are the
evidence of a single run: the same checks in the same order, summed seconds, and an error if a check is missing or a
part belongs to another run.

Knows plans and reports; nothing about who carries out which part where.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, lru_cache
from pathlib import Path

from qwen3vl_export.artifact import JUNIT, PARITY, SUMMARY, Artifact, open_artifact
from qwen3vl_export.errors import ParityError
from qwen3vl_export.evidence import CheckResult, Hardware, Speed, summarize
from qwen3vl_export.evidence.answers import EXAM_STAGES
from qwen3vl_export.hash_cache import source_digest
from qwen3vl_export.json_form import from_json, to_json
from qwen3vl_export.recipe.model import Recipe

from .cases.exam import GROUPS
from .cases.matrix import load_matrix
from .checks.sampling import STAGE
from .evidence.page import render
from .evidence.report import hardware, versions
from .judging.outcome import Outcome
from .plan import Check, Subject, plan
from .sides.bench import Bench
from .sides.counts import Clock
from .unfinished import SOURCES
from .verify import HTML, matrix_for, open_bench, profile_of, report_of, run

FORMAT = 2
EXAM = "exam"
SETTINGS = 0.01  # of an ordinary case: no graph and no model is run
QUESTION = 0.3  # of an ordinary case: one picture and a short answer of both sides
COUNTED = ("total", "pytorch", "artifact")  # seconds that are summed


@dataclass(frozen=True)
class Part:
    """The results of some units of a verification, and what they rest on."""

    format: int
    manifest_sha256: str
    matrix: str
    seed: int
    units: tuple[str, ...]
    seconds: Mapping[str, float]
    reference_results: Mapping[str, int]
    speed: Speed | None
    versions: Mapping[str, str | None]
    hardware: Hardware
    device: str | None
    pieces: Mapping[str, int] | None
    checks: tuple[CheckResult, ...]


def unit_of(check: Check) -> str:
    """The unit a check belongs to."""
    if check.case is not None:
        return check.case.name
    return EXAM if check.stage in EXAM_STAGES else check.id


def units(recipe: Recipe, matrix: str) -> dict[str, float]:
    """The units of a recipe's artifact, in order, and how many ordinary cases each costs.

    Raises:
        ParityError: no such tier.
    """
    checks = plan(matrix, Subject.of_recipe(recipe)).checks
    weights = {unit_of(check): SETTINGS if check.stage == STAGE else 1.0 for check in checks}
    if EXAM in weights:
        weights[EXAM] = QUESTION * len(GROUPS) * load_matrix().exam_questions[matrix]
    return weights


def verify_part(
    artifact: Path,
    matrix: str,
    names: Sequence[str],
    checkpoint: Path | None = None,
    adapters: Sequence[str] = (),
) -> bytes:
    """Carry out some units of an artifact's plan; failures are recorded in the part, they are not errors.

    Args:
        names: of the units.
        checkpoint: directory to compare with; None is the one the recipe names.
        adapters: of the checkpoint; by default those the manifest records.

    Returns:
        The part, for `merge_parts`.

    Raises:
        ArtifactError, CheckpointError, ParityError: there is nothing to compare, or no unit of that name.
    """
    bench = cached_bench(artifact, matrix, checkpoint, tuple(adapters))
    before, clock_before, selected = read_counters(bench), replace(bench.clock), frozenset(names)
    carried_out: set[str] = set()

    def track(checks: Iterable[Check]) -> Iterator[Check]:
        for check in checks:
            yield check
            carried_out.add(unit_of(check))

    report = run(bench, matrix, track, only=lambda check: unit_of(check) in selected)
    if missing := sorted(selected - carried_out):
        raise ParityError(f"{artifact}: its plan has no {missing[0]}", "Plan the fleet again")
    after = read_counters(bench)
    part = Part(
        format=FORMAT,
        manifest_sha256=report.manifest_sha256,
        matrix=matrix,
        seed=report.seed,
        units=tuple(names),
        seconds={"total": report.seconds["total"], **{key: after[key] - before[key] for key in COUNTED[1:]}},
        reference_results={key: int(after[key] - before[key]) for key in bench.reference.results.counts},
        speed=bench.clock.since(clock_before).speed(bench.runtime.sessions.threads),
        versions=versions(),
        hardware=hardware(),
        device=report.device,
        pieces=report.pieces,
        checks=tuple(outcome.result for outcome in report.outcomes),
    )
    return to_json(part).encode()


def merge_parts(artifact: Path, matrix: str, parts: Sequence[bytes]) -> dict[str, bytes]:
    """The evidence of a whole verification, merged from its parts: file name -> content.

    Equal parts give equal bytes.

    Raises:
        ParityError: a check is missing or duplicated, or a part is of another artifact, matrix or version.
    """
    opened = open_artifact(artifact, check=False)
    planned = plan(matrix, Subject.of_artifact(opened))
    read = [read_part(part, opened, matrix) for part in parts]
    outcomes: dict[str, Outcome] = {}
    for outcome in (Outcome.of_result(result) for part in read for result in part.checks):
        if outcome.id in outcomes:
            raise ParityError(f"{artifact}: {outcome.id} is in two parts", "Plan the fleet again")
        outcomes[outcome.id] = outcome
    names = [check.id for check in planned.checks]
    if missing := [name for name in names if name not in outcomes]:
        raise ParityError(
            f"{artifact}: {len(missing)} checks are in no part, {missing[0]} first", "Run the fleet again"
        )
    report = report_of(
        opened,
        profile_of(opened),
        planned,
        [outcomes[name] for name in names],
        {key: sum(part.seconds[key] for part in read) for key in COUNTED},
        read[0].seed,
        {key: sum(part.reference_results[key] for part in read) for key in read[0].reference_results},
    )
    report = replace(
        report,
        hardware=merge_hardware([part.hardware for part in read]),
        speed=merge_speeds([part.speed for part in read]),
        device="; ".join(dict.fromkeys(part.device for part in read if part.device is not None)) or None,
        pieces=merge_pieces([part.pieces for part in read if part.pieces is not None]),
    )
    evidence = report.evidence()
    return {
        PARITY: report.to_json().encode(),
        JUNIT: report.to_junit().encode(),
        HTML: render(evidence, matrix_for(opened)).encode(),
        SUMMARY: to_json(summarize(evidence)).encode(),
    }


def read_part(data: bytes, artifact: Artifact, matrix: str) -> Part:
    """A part, which must belong to this artifact, matrix and version.

    Raises:
        ParityError: it does not, or is no part.
    """
    expected = {"format": FORMAT, "manifest_sha256": artifact.manifest_sha256, "matrix": matrix, "versions": versions()}
    try:
        part = from_json(Part, data)
    except ValueError as error:
        raise ParityError(f"{artifact.root}: a part cannot be read ({error})", "Run the fleet again") from None
    for key, value in expected.items():
        if getattr(part, key) != value:
            message = f"{artifact.root}: a part has {key} {getattr(part, key)}, not {value}"
            raise ParityError(message, "Run the fleet again")
    return part


def merge_hardware(machines: Sequence[Hardware]) -> Hardware:
    """One description of several machines: each different value once, the smallest number of cores."""

    processors = dict.fromkeys(machine.processor for machine in machines if machine.processor is not None)
    systems = dict.fromkeys(machine.system for machine in machines)
    cores = [machine.cores for machine in machines if machine.cores is not None]
    return Hardware("; ".join(processors) or None, min(cores, default=None), "; ".join(systems))


def merge_speeds(speeds: Sequence[Speed | None]) -> Speed | None:
    """The speed of several processes, seconds and tokens summed; None if none generated an answer."""
    measured = [speed for speed in speeds if speed is not None]
    if not measured:
        return None
    threads = {speed.threads for speed in measured}
    sums = {field.name: sum(getattr(speed, field.name) for speed in measured) for field in fields(Clock)}
    return Speed(threads.pop() if len(threads) == 1 else None, **sums)


def merge_pieces(counts: Sequence[Mapping[str, int]]) -> dict[str, int] | None:
    """In how many pieces each graph was run, the most on any machine; None if all ran it whole."""
    return {graph: max(part.get(graph, 1) for part in counts) for part in counts for graph in part} or None


@lru_cache(maxsize=1)
def cached_bench(artifact: Path, matrix: str, checkpoint: Path | None, adapters: tuple[str, ...]) -> Bench:
    """A bench, cached for the next part of the same artifact: its files are checked and PyTorch loads once."""
    return open_bench(artifact, matrix, checkpoint, adapters=adapters)


def forget() -> None:
    """Drop what is cached between parts."""
    cached_bench.cache_clear()


def read_counters(bench: Bench) -> dict[str, float]:
    """Seconds of both sides and PyTorch's results so far."""
    reference = bench.reference
    return {
        "pytorch": reference.seconds,
        "artifact": bench.candidate_seconds,
        **reference.results.counts,
    }


@cache
def version() -> str:
    """Digest of every file of the harness that a verdict depends on."""
    return source_digest(Path(__file__).parent, SOURCES)
