"""`verify`: carry out the plan of an artifact, show it, and write the evidence into the artifact.

pytest (`test_parity.py`) carries out the same plan on the same bench, one test per check.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from qwen3vl_export.artifact import JUNIT, PARITY, Artifact, open_artifact
from qwen3vl_export.console import console
from qwen3vl_export.contract import TEXT
from qwen3vl_export.errors import ArtifactError, ParityError
from qwen3vl_export.evidence import CheckpointSource
from qwen3vl_export.promise import RUNS, TASK, head_stages, own_weights_stages
from qwen3vl_export.runtime import Qwen3VL
from qwen3vl_export.runtime.session import Sessions
from qwen3vl_export.runtime.sizing import Sizing

from .budget.allocator import map_large_arrays
from .budget.estimate import Estimate, estimate
from .budget.resources import must_stream, resources_of, should_stream
from .budget.sizes import question_sizes, sizes_of
from .budget.table import show as show_estimate
from .cases.fitting import fit_matrix
from .cases.matrix import Matrix, load_matrix
from .cases.task_files import load_tasks
from .cases.tasks import Task
from .checks.dequantized import add_own_weights_rules
from .diagnosis.layer_trace import Trail, trace_layers
from .evidence import history
from .evidence.page import render
from .evidence.report import Report, show, write
from .judging.outcome import Outcome
from .judging.verdicts import Profile, load_profile
from .options import Options
from .plan import Check, Plan, Subject, cases_of, cases_without_model, plan, questions_of
from .progress import show_progress
from .rounds import ReportModule, carry_out_all
from .sides.artifact.artifact_results import ArtifactResults, open_store
from .sides.artifact.cut_sessions import Pieces
from .sides.artifact.foreign import ForeignSessions, is_contract, open_foreign, read_contract
from .sides.bench import Bench
from .sides.pytorch.adapters import import_peft
from .sides.pytorch.device import CPU, exceeds_device, open_device
from .sides.pytorch.pixel_reference import pixel_budget
from .sides.pytorch.reference import Reference
from .sides.pytorch.reference_cache import Store, default_directory, recorded_files, scope_of
from .sides.recorded import find_checkpoint
from .unfinished import identity_of, is_unfinished, open_unfinished

HTML = "parity.html"
SMALL_ARTIFACT = 200_000_000  # bytes of an artifact; below it threads cost more than they bring


def verify(artifact: Path, options: Options) -> int:
    """Compare an artifact with PyTorch, precision by precision and stage by stage: 0 if everything passed, 1 if not.

    `parity.json`, `parity.xml` and `parity.html` are written into the artifact, one line is appended to the history.

    Raises:
        ArtifactError, CheckpointError, ParityError: there is nothing to compare, or a task file cannot be used.
    """
    tasks = load_tasks(options.tasks)
    precisions = precisions_of(artifact, options)
    if options.time is not None:
        options = replace(options, time=options.time / len(precisions))
    if options.resume:  # those before the interrupted one have their evidence, those after it were not begun
        root = options.cache or default_directory()
        interrupted = [is_unfinished(root, artifact, precision) for precision in precisions]
        precisions = precisions[interrupted.index(True) if True in interrupted else 0 :]
    if options.plan:
        for precision in precisions:
            show_estimate(estimate_of(open_for(artifact, options, precision, tasks), options), artifact, precision)
        return 0
    passed = [
        verify_precision(artifact, replace(options, resume=options.resume and not index), precision, tasks)
        for index, precision in enumerate(precisions)
    ]
    return 0 if all(passed) else 1


def precisions_of(artifact: Path, options: Options) -> tuple[str, ...]:
    """The precision that was asked for, else every one the artifact has."""
    if is_contract(artifact):
        if options.precision:
            raise ArtifactError(f"{artifact}: states one precision", "Leave --precision out")
        return ("",)
    if options.precision is not None:
        return (options.precision,)
    return ("", *open_artifact(artifact, check=False).manifest.precisions)


def verify_precision(artifact: Path, options: Options, precision: str, tasks: Sequence[Task] = ()) -> bool:
    """One precision of the artifact; whether everything passed."""
    root = options.cache or default_directory()
    with open_unfinished(root, artifact, precision, options.resume) as unfinished:
        bench = open_for(artifact, options, precision, tasks, unfinished.directory)
        estimated = estimate_of(bench, options)
        identity = identity_of(bench, options.matrix, options.cases)
        done = unfinished.begin(artifact, identity, options.resume)
        with show_progress(estimated, done) as progress:
            report = run(
                bench,
                track=progress.track,
                report=progress.report,
                done=done,
                record=unfinished.record,
                planned=estimated.planned,
            )
        if options.bisect:
            report = replace(report, trails=trails_of(bench, report))
        named = [
            *(f"--adapter {adapter}" for adapter in options.adapters),
            *(f"--tasks {path}" for path in options.tasks),
            *([f"--precision {precision}"] * bool(precision)),
        ]
        show(report, console(), " ".join(["qwen3vl-export verify", str(artifact), *named]))
        if not options.cases:
            write_evidence(bench.artifact, report, bench.matrix, options.history)
        unfinished.finish()
    return report.passed


def open_for(
    artifact: Path, options: Options, precision: str, tasks: Sequence[Task], work: Path | None = None
) -> Bench:
    """The bench of one precision; a plan alone compares no file with the manifest."""
    return open_bench(
        artifact,
        options.matrix,
        options.checkpoint,
        check_files=not options.plan,
        cache=options.cache,
        seed=options.seed,
        precision=precision,
        adapters=options.adapters,
        memory=options.memory,
        work=work,
        cases=options.cases,
        device=options.device,
        tasks=tasks,
    )


def estimate_of(bench: Bench, options: Options) -> Estimate:
    """The plan of the options with its estimate, cut to the time they allow.

    Raises:
        ParityError: no such tier or case, nothing to check, or too little time for what the recipe promises.
    """
    subject = Subject.of_artifact(bench.artifact)
    planned = plan(options.matrix, subject, bench.matrix, options.cases, bench.tasks)
    if not planned.checks:
        raise ParityError(
            f"{bench.artifact.root}: its plan has no check, nothing was compared", "Choose another --matrix or --case"
        )
    assert bench.resources is not None
    estimated = estimate(bench, planned, bench.resources)
    return estimated if options.time is None else estimated.within(options.time, subject)


def open_bench(
    artifact: Path,
    matrix: str | None = None,
    checkpoint: Path | None = None,
    check_files: bool = True,
    cache: Path | None = None,
    seed: int | None = None,
    precision: str = "",
    reference: Reference | None = None,
    adapters: Sequence[str] = (),
    memory: int | None = None,
    work: Path | None = None,
    cases: Sequence[str] = (),
    device: str = CPU.type,
    tasks: Sequence[Task] = (),
) -> Bench:
    """An artifact (or a package with its contract) and its checkpoint; PyTorch loads when it is first needed.

    Args:
        artifact: directory that a build wrote, or the contract file of another exporter's package.
        check_files: whether an artifact whose files are not those of its manifest is an error.
        precision: one of those the artifact has; "" is the default one.
        reference: PyTorch with this checkpoint, if it is loaded already.
        adapters: directories or repositories of the checkpoint's adapters; by default those the manifest records.
        memory: bytes that the process may take; None is what is free, less a reserve.
        work: directory for results of the artifact; None is one that is deleted with the bench.
        cases: names of the only cases to run, of any tier; by default all of the tier's.
        device: that PyTorch computes on.
        tasks: questions that are asked besides.

    Raises:
        ParityError: no checkpoint, no such tier, case or device, or too little memory or disk; a question that the
            model cannot be asked.
    """
    open_sessions: Callable[..., Sessions]
    if is_contract(artifact):
        opened, source = open_foreign(artifact, checkpoint, adapters)
        runtime = Qwen3VL(opened, threads=1)
        open_sessions = partial(ForeignSessions, opened, read_contract(artifact))
    else:
        opened = open_artifact(artifact, check_files, precision)
        size = sum(record.bytes for record in opened.manifest.files.values())
        runtime = Qwen3VL(opened, threads=1 if size < SMALL_ARTIFACT else None)
        open_sessions = partial(Sessions, opened, runtime.sessions.threads)
        source = find_checkpoint(opened, checkpoint, adapters)
    loaded = matrix_for(opened, source.root)
    loaded = loaded if seed is None else loaded.model_copy(update={"seed": seed})
    if source.adapters:
        import_peft()
    root = cache or default_directory()
    head = opened.manifest.facts.head
    computing = open_device(device)
    store = Store(root, scope_of({**recorded_files(opened.manifest.checkpoint), "head": head}, computing.type))
    if tasks and head != TEXT:
        raise ParityError(f"{artifact}: its head is {head}, it answers no questions", "Leave --tasks out")
    planned = plan(matrix, Subject.of_artifact(opened), loaded, cases, tasks)
    sizes = sizes_of(cases_of(planned), loaded, runtime.preparer, cases_without_model(planned))
    sizes += [question_sizes(question, runtime.preparer) for question in questions_of(planned)]
    resources = resources_of(opened, source.root, sizes, memory, store)
    if reference is None:
        streamed = must_stream(opened, resources) or exceeds_device(computing, source.root)
        streamed = streamed or (computing == CPU and should_stream(resources))
        merged = [adapter.root for adapter in source.adapters]
        reference = Reference(
            source.root, store, adapters=merged, streamed=streamed, room=resources.room, device=computing, head=head
        )
    if reference.streamed:
        map_large_arrays()
    scope = f"{opened.manifest_sha256} {precision}"
    limit = resources.piece() if reference.streamed else None
    pieces = None if limit is None else Pieces(limit)
    runtime.sessions = open_sessions(opener=None if pieces is None else pieces.open)
    if work is None:
        results = ArtifactResults.temporary(root, scope, reference.streamed, pieces, resources.held())
    else:
        results = ArtifactResults(open_store(work, scope), reference.streamed, pieces, resources.held())
    return Bench(
        artifact=opened,
        runtime=runtime,
        reference=reference,
        results=results,
        matrix=loaded,
        profile=profile_of(opened, tasks),
        resources=resources,
        tasks=tuple(tasks),
    )


def matrix_for(artifact: Artifact, checkpoint: Path | None = None) -> Matrix:
    """The matrix file, its sizes for the pixel budget of the checkpoint, or of what the artifact says of it.

    Embedding models and rerankers have a budget of their own, which the artifact states.
    """
    matrix = load_matrix()
    if checkpoint is not None and artifact.manifest.facts.head == TEXT:
        return matrix.for_checkpoint(*pixel_budget(checkpoint))
    return fit_matrix(matrix, Sizing(artifact))


def open_unchecked(path: Path, checkpoint: Path | None = None, precision: str = "") -> Artifact:
    """An artifact or a package without checking its files."""
    return open_foreign(path, checkpoint)[0] if is_contract(path) else open_artifact(path, False, precision)


def run(
    bench: Bench,
    matrix: str | None = None,
    track: Callable[[Sequence[Check]], Iterable[Check]] = iter,
    only: Callable[[Check], bool] = lambda check: True,
    cases: Sequence[str] = (),
    report: ReportModule = lambda *_: None,
    done: Mapping[str, Outcome] = MappingProxyType({}),
    record: Callable[[Outcome], None] = lambda outcome: None,
    planned: Plan | None = None,
) -> Report:
    """Carry out the plan of the bench's artifact.

    Args:
        track: wraps the checks to show progress.
        only: whether to run a check of the plan; runs all by default.
        cases: names of the only cases to run, of any tier; by default all of the tier's.
        report: is told each module that PyTorch loads where it is streamed, and for how many results.
        done: outcomes that there are already, by the id of the check.
        record: is told each new outcome.
        planned: the plan to carry out; by default the one of `matrix` and `cases`.

    Raises:
        ParityError: no such tier or case.
    """
    start = time.perf_counter()
    planned = planned or plan(matrix, Subject.of_artifact(bench.artifact), bench.matrix, cases, bench.tasks)
    planned = replace(planned, checks=tuple(check for check in planned.checks if only(check)))
    outcomes = carry_out_all(bench, planned.checks, track, report, done, record)
    total = time.perf_counter() - start
    benches = bench.every
    references = [*dict.fromkeys(side.reference for side in benches)]  # two may share one
    pytorch = sum(reference.seconds for reference in references)
    seconds = {"total": total, "pytorch": pytorch, "artifact": sum(side.candidate_seconds for side in benches)}
    counts = Counter[str]()
    for reference in references:
        counts.update(reference.results.counts)
    result = report_of(bench.artifact, bench.profile, planned, outcomes, seconds, bench.matrix.seed, dict(counts))
    pieces = dict(bench.results.pieces.counts) if bench.results.pieces is not None else None
    speed = bench.clock.speed(bench.runtime.sessions.threads)
    return replace(result, speed=speed, pieces=pieces, device=bench.reference.device.type)


def trails_of(bench: Bench, report: Report) -> list[Trail]:
    """Layer by layer through the first case that failed, else through the first with a picture."""
    names = {outcome.case for outcome in report.outcomes}
    ran = [case for case in bench.cases if case.name in names and not case.is_vision_only]
    default = next((case for case in ran if case.has_pictures), ran[0] if ran else None)
    return trace_layers(bench, report.failures, default) if default is not None else []


def report_of(
    artifact: Artifact,
    profile: Profile,
    planned: Plan,
    outcomes: Sequence[Outcome],
    seconds: dict[str, float],
    seed: int,
    reference_results: dict[str, int] | None = None,
) -> Report:
    """Outcomes with what they are based on."""
    return Report(
        artifact=artifact.manifest.name,
        manifest_sha256=artifact.manifest_sha256,
        checkpoint=CheckpointSource(artifact.manifest.checkpoint["source"], artifact.manifest.checkpoint["revision"]),
        matrix=planned.matrix,
        seed=seed,
        profile=profile,
        outcomes=outcomes,
        planned=len(planned.checks),
        left_out=planned.left_out,
        seconds=seconds,
        reference_results=reference_results,
        tasks=planned.tasks,
    )


def write_evidence(artifact: Artifact, report: Report, matrix: Matrix, log: Path | None = None) -> None:
    """`parity.json`, which is the evidence, into the artifact; then a line into the history, `parity.xml` and
    `parity.html`."""
    evidence = report.evidence()
    write(artifact.evidence_path(PARITY), report.to_json())
    runs = history.record(log or artifact.root.resolve().parent / history.NAME, evidence)
    write(artifact.evidence_path(JUNIT), report.to_junit())
    write(artifact.evidence_path(HTML), render(evidence, matrix, runs))


def profile_of(artifact: Artifact, tasks: Sequence[Task] = ()) -> Profile:
    """The thresholds the recipe names, by default those of its dtype, for the stages of its head and of tasks; for the
    stages that compare with the artifact's dequantized weights, those of its compute dtype."""
    recipe, model_type = artifact.manifest.recipe, artifact.manifest.facts.model_type
    profile = load_profile(recipe["parity"].get("tolerances") or recipe["dtype"])
    profile = add_own_weights_rules(profile, recipe, model_type)
    needed = {*head_stages(recipe), *own_weights_stages(recipe, model_type), *([TASK] if tasks else [])}
    unneeded = set(RUNS) - needed
    return replace(profile, rules={stage: rules for stage, rules in profile.rules.items() if stage not in unneeded})
