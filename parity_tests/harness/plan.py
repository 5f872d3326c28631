"""Which checks an artifact gets: the one list that `verify` and pytest both run.

Case by case, and within a case in the order a value flows, so that the first failure names the area and the reference's
cache stays small. What cannot be checked on an artifact is listed with its reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from typing import Any

from qwen3vl_export.artifact import Artifact
from qwen3vl_export.contract import DECODER, TIERS
from qwen3vl_export.errors import ParityError, Qwen3VLExportError
from qwen3vl_export.evidence.answers import EXAM, EXAM_STAGES, QUESTION_STAGES
from qwen3vl_export.manifest import Manifest
from qwen3vl_export.promise import (
    CHUNKED,
    DEQUANTIZED,
    PACKAGED,
    QUANTIZED_CACHE,
    TASK,
    Grid,
    graph_kind,
    grid_case,
    has_two_decoders,
    head_stages,
    missing_checks,
    missing_graphs,
    own_weights_stages,
    promised_graphs,
    quantized_graphs,
)
from qwen3vl_export.recipe.model import Recipe
from qwen3vl_export.runtime.sizing import Sizing

from .cases.exam import exam_groups
from .cases.fitting import fit_matrix, picture_tokens
from .cases.matrix import CASES, Case, Matrix, load_matrix
from .cases.tasks import Question, Task
from .checks import dequantized, quantized_cache, rounded
from .checks import exam as exam_checks
from .checks import packaged as packaged_checks
from .checks import sampling as sampling_checks
from .checks import tasks as question_checks
from .checks import weights as weight_checks
from .checks.heads import HEAD_STAGES
from .checks.induction import run_stage
from .checks.stages import STAGES
from .diagnosis.diagnose import diagnose
from .judging.measures import ShapeMismatch
from .judging.outcome import Finding, Outcome, judge
from .sides.bench import Bench
from .sides.pytorch.results import Deferred

ORDER = (
    sampling_checks.STAGE,
    *weight_checks.STAGES,
    *STAGES,
    *HEAD_STAGES,
    *dequantized.prefixed_stages(),
    *rounded.CHECKS,
    QUANTIZED_CACHE,
    PACKAGED,
    *QUESTION_STAGES,
)
PICTURE_STAGES = ("preprocess", "vision")
MODEL_FREE = ("prompt", "preprocess")  # run no graph and nothing of PyTorch's model


@dataclass(frozen=True)
class Check:
    """One comparison, to be carried out on a bench."""

    stage: str
    name: str
    run: Callable[[Bench], Finding]
    case: Case | None = None
    questions: tuple[Question, ...] = ()  # that it asks

    @property
    def asks(self) -> list[str]:
        """The names of what it asks both sides about, a case or questions."""
        return [self.case.name] if self.case is not None else [question.name for question in self.questions]

    @property
    def id(self) -> str:
        """Reads as the matrix: `vision[users-case-16x16-after-24x24]`."""
        return f"{self.stage}[{self.name}]"


@dataclass(frozen=True)
class Subject:
    """What a plan depends on: the recipe, and the sizes of pictures if its artifact is built.

    Attributes:
        graphs: the graphs the recipe promises, each with the (h, w) patches an encoder is bound to, or None.
        model_type: of the checkpoint, where it is known.
        sizing: chooses the sizes of pictures, where the artifact is built.
    """

    recipe: Mapping[str, Any]
    graphs: Mapping[str, Grid | None]
    model_type: str = ""
    sizing: Sizing | None = None

    @classmethod
    def of_manifest(cls, manifest: Manifest) -> Subject:
        facts = manifest.facts
        return cls(manifest.recipe, promised_graphs(manifest.recipe, facts.patch_size), facts.model_type)

    @classmethod
    def of_artifact(cls, artifact: Artifact) -> Subject:
        return replace(cls.of_manifest(artifact.manifest), sizing=Sizing(artifact))

    @classmethod
    def of_recipe(cls, recipe: Recipe, patch_size: int = 16) -> Subject:
        values = recipe.to_json_dict()
        return cls(values, promised_graphs(values, patch_size))

    @property
    def grids(self) -> list[Grid]:
        """The grids that encoders are bound to; empty if one takes any."""
        return [grid for grid in self.graphs.values() if grid is not None]

    @property
    def kinds(self) -> frozenset[str]:
        """The graphs, every encoder under the one name."""
        return frozenset(map(graph_kind, self.graphs))


@dataclass(frozen=True)
class Plan:
    """The checks of one artifact, and what is left out: id -> reason."""

    matrix: str
    checks: tuple[Check, ...]
    left_out: dict[str, str] = field(default_factory=dict)
    tasks: Mapping[str, str | None] = field(default_factory=dict)  # sha256 of each task that is asked, by name


def cases_of(planned: Plan) -> list[Case]:
    """The cases of a plan's checks, in order."""
    return list({check.case.name: check.case for check in planned.checks if check.case is not None}.values())


def questions_of(planned: Plan) -> list[Question]:
    """The questions of a plan's checks, in order."""
    return list({question.name: question for check in planned.checks for question in check.questions}.values())


def cases_without_model(planned: Plan) -> set[str]:
    """The names of a plan's cases on which it runs no model."""
    modelled = {check.name for check in planned.checks if check.stage not in MODEL_FREE}
    return {case.name for case in cases_of(planned)} - modelled


def plan(
    name: str | None,
    subject: Subject,
    matrix: Matrix | None = None,
    only: Sequence[str] = (),
    tasks: Sequence[Task] = (),
) -> Plan:
    """Every check of a tier.

    Args:
        name: of the tier; None is the one the recipe names.
        matrix: the cases; None is the matrix file.
        only: names of cases of any tier, and of questions of the tasks; if there are any, the plan has these alone,
            without the exam.
        tasks: that are asked besides.

    Raises:
        ParityError: no such tier or case, or a tier that does not run all that the recipe promises.
    """
    tier = name or subject.recipe["parity"]["matrix"]
    matrix = matrix or load_matrix()
    matrix = matrix if subject.sizing is None else fit_matrix(matrix, subject.sizing)
    if only:
        asked = [check for check in task_checks(tasks) if {check.name, check.id} & {*only}]
        names = {name for check in asked for name in (check.name, check.id)}
        cases = select_cases(cases_for(matrix, TIERS[-1], subject), [name for name in only if name not in names])
        for case, reason in beyond_context(cases, subject).items():
            raise ParityError(f"{case}: {reason}", "Choose another case")
        return drop_missing(Plan(tier, (*checks_of(cases, subject), *asked)), subject)
    cases = cases_for(matrix, tier, subject)
    left_out = beyond_context(cases, subject)
    cases = [case for case in cases if case.name not in left_out]
    left_out |= too_large(cases, matrix, subject)
    quantized = quantized_graphs(subject.recipe, subject.kinds)
    checks = []
    if sampling_checks.STAGE in head_stages(subject.recipe):
        checks += [Check(sampling_checks.STAGE, sampling_checks.NAME, sampling_checks.compare_settings)]
    checks += [Check(stage, graph, weight_checks.weights_check(graph)) for stage, graph in quantized]
    checks += checks_of(cases, subject, left_out)
    if has_two_decoders(subject.recipe):
        checks.append(Check(PACKAGED, DECODER, packaged_checks.compare_decoders))
    if subject.recipe["parity"].get("held_out"):
        per_size = matrix.exam_questions[tier]
        groups = exam_groups(per_size)
        checks += [Check(EXAM, name, exam_checks.exam_check(group), questions=group) for name, group in groups.items()]
        if per_size >= matrix.accuracy_from:
            every = [question for group in groups.values() for question in group]
            checks.append(Check("accuracy", "all-questions", exam_checks.accuracy(every)))
        else:
            left_out["accuracy"] = f"{per_size} questions per picture size are too few to judge by"
    else:
        left_out |= dict.fromkeys(EXAM_STAGES, "the recipe says held_out: false")
    checks += task_checks(tasks)
    digests = {task.name: task.sha256 for task in tasks}
    return complete(drop_missing(Plan(tier, tuple(checks), left_out, digests), subject), subject)


def task_checks(tasks: Sequence[Task]) -> list[Check]:
    """A check for each question."""
    return [
        Check(TASK, question.name, question_checks.task_check(question), questions=(question,))
        for task in tasks
        for question in task.questions
    ]


def drop_missing(planned: Plan, subject: Subject) -> Plan:
    """The plan with checks left out that need a graph the recipe does not promise."""
    missing = {check.id: missing_graphs(check.stage, subject.kinds) for check in planned.checks}
    reasons = {name: f"the artifact has no {', '.join(graphs)}" for name, graphs in missing.items() if graphs}
    checks = tuple(check for check in planned.checks if check.id not in reasons)
    return replace(planned, checks=checks, left_out=planned.left_out | reasons)


def complete(planned: Plan, subject: Subject) -> Plan:
    """The plan of a whole tier, as it is.

    Raises:
        ParityError: it would leave something unproven that the recipe promises.
    """
    ids = [(check.stage, check.name) for check in planned.checks]
    for missing in missing_checks(subject.recipe, subject.graphs, subject.model_type, ids):
        raise ParityError(
            f"{CASES.name}: the {planned.matrix} matrix has no check of {missing}, which the recipe promises",
            "Add a case, or choose another matrix",
        )
    return planned


def select_cases(cases: Sequence[Case], names: Sequence[str]) -> list[Case]:
    """The cases of these names; a check's id (`vision[NAME]`) names its case too."""
    known = {case.name: case for case in cases}
    selected = []
    for text in names:
        name = text.rstrip("]").rpartition("[")[2]
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"Did you mean {close[0]}?" if close else "Random cases need the --seed of the run they failed in"
            raise ParityError(f"no case named {name} in {CASES.name}", hint)
        selected.append(known[name])
    return selected


def cases_for(matrix: Matrix, tier: str, subject: Subject) -> list[Case]:
    """The tier's cases; encoders bound to grids get those grids instead of the vision-only cases."""
    cases = matrix.of_tier(tier)
    if not subject.grids:
        return cases
    bound = [Case(name=grid_case((h, w)), tier="quick", grids=[f"1x{h}x{w}"]) for h, w in subject.grids]
    return [case for case in cases if not case.is_vision_only] + bound


def too_large(cases: Sequence[Case], matrix: Matrix, subject: Subject) -> dict[str, str]:
    """The cases of which only what runs no model is compared, by name, each with the reason."""
    if subject.sizing is None:
        return {}
    tokens = {case.name: sum(picture_tokens(case, subject.sizing)) for case in cases}
    return {
        name: f"its pictures make {count:,} tokens, over the {matrix.most_image_tokens:,} of {CASES.name}: "
        f"without --case {name} only {' and '.join(MODEL_FREE)} run"
        for name, count in tokens.items()
        if count > matrix.most_image_tokens
    }


def beyond_context(cases: Sequence[Case], subject: Subject) -> dict[str, str]:
    """The cases that the model cannot be asked, by name, each with the reason."""
    if subject.sizing is None:
        return {}
    context = subject.sizing.facts.max_position_embeddings
    tokens = {case.name: max(picture_tokens(case, subject.sizing), default=0) for case in cases}
    return {
        name: f"its pictures make {count:,} tokens, the context holds {context:,}"
        for name, count in tokens.items()
        if count > context
    }


def stages_of(case: Case, recipe: Mapping[str, Any]) -> list[str]:
    if case.is_vision_only:
        return ["vision"]
    needed = head_stages(recipe)
    return [
        stage
        for stage in (*STAGES, *HEAD_STAGES)
        if stage in needed and (case.has_pictures or stage not in PICTURE_STAGES)
    ]


def checks_of(cases: Sequence[Case], subject: Subject, left_out: Collection[str] = ()) -> list[Check]:
    """Every check of these cases: against the checkpoint, then against the artifact's own weights.

    Args:
        left_out: names of cases of which only the stages `MODEL_FREE` run.
    """
    stages = {
        case.name: [
            stage for stage in stages_of(case, subject.recipe) if case.name not in left_out or stage in MODEL_FREE
        ]
        for case in cases
    }
    checks = [check_of(stage, case) for case in cases for stage in stages[case.name]]
    own = own_weights_stages(subject.recipe, subject.model_type)
    return checks + [
        Check(stage, case.name, own_weights_check(stage, case), case)
        for case in cases
        for stage in own
        if (CHUNKED if stage == QUANTIZED_CACHE else stage.partition("_")[2]) in stages[case.name]
    ]


def own_weights_check(stage: str, case: Case) -> Callable[[Bench], Finding]:
    """The check of a stage `dequantized_*` or `rounded_*`, or of a quantized cache."""
    if stage == QUANTIZED_CACHE:
        return partial(quantized_cache.quantized_cache, case)
    if stage in rounded.CHECKS:
        return partial(rounded.CHECKS[stage], case)
    return dequantized.dequantized_check(stage.removeprefix(DEQUANTIZED), case)


def check_of(stage: str, case: Case) -> Check:
    return Check(stage, case.name, lambda bench: run_stage(stage, bench, case), case)


def carry_out(bench: Bench, check: Check) -> Outcome:
    """Run one check and judge it; whatever goes wrong becomes a failed outcome, never an exception.

    Raises:
        Deferred: PyTorch's side is streamed, and has not computed yet what the check needs.
    """
    start = time.perf_counter()
    try:
        finding = check.run(bench)
    except Deferred:
        raise
    except ShapeMismatch as error:
        return Outcome(check.stage, check.name, time.perf_counter() - start, error=str(error))
    except Qwen3VLExportError as error:
        return Outcome(check.stage, check.name, time.perf_counter() - start, error=str(error))
    except Exception as error:  # a crash of either side must not end the run or hide the other checks
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Outcome(check.stage, check.name, time.perf_counter() - start, error=reason)
    outcome = judge(check.stage, check.name, finding, bench.profile, time.perf_counter() - start)
    return outcome if outcome.passed else diagnose(bench, outcome, check.case)
