"""The two answers of a verification, each in one line: is the graph right, and what does its precision cost.

Rounding weights may change results more than a mistake in a graph does, so no limit against the checkpoint tells the
two apart. Where weights are quantized, the graph is judged by the stages that compare with PyTorch with these weights
and by those in which rounding changes nothing; the others judge the cost. Where none are, every check judges the graph,
and what a smaller dtype costs is within its limits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Protocol

from ..promise import CHUNKED, DEQUANTIZED, ROUNDED, TASK
from . import Answer, Answers, Evidence, LogitCost, Profile
from .tasks import describe

COST_STAGES = (  # against the checkpoint, with weights or activations that are not its own
    "vision",
    "embeddings",
    "decoder",
    "prefill",
    "teacher_forced",
    "decode",
    "generate",
    "hidden_states",
    "answer_logits",
    "embedding",
    "score",
)
EXAM = "exam"  # the stage, and the name of its task
EXAM_STAGES = (EXAM, "accuracy")
QUESTION_STAGES = (*EXAM_STAGES, TASK)  # about right and wrong answers
EXACT = ("float32", "float16")  # profiles whose limits only a right graph keeps
CHANCE = 1.0  # the loss of a text whose tokens are all equally likely


class Judged(Protocol):
    """A check that was carried out."""

    @property
    def stage(self) -> str: ...

    @property
    def passed(self) -> bool: ...


def task_of(stage: str, case: str) -> str | None:
    """The name of the task whose questions a check asks; None if it is about something else."""
    return EXAM if stage == EXAM else case.partition("/")[0] if stage == TASK else None


def cost_stages(stages: Collection[str]) -> tuple[str, ...]:
    """The stages that limit the cost of quantized weights, among them prefill in chunks where activations are rounded:
    `int8_dynamic` rounds those of each call in another way.

    Args:
        stages: that the artifact's own weights add.
    """
    return (*COST_STAGES, CHUNKED) if f"{DEQUANTIZED}{CHUNKED}" in stages else COST_STAGES


def answer(checks: Iterable[Judged], profile: Profile) -> tuple[Answer | None, Answer | None]:
    """What the checks say about the graph and about the cost of its precision, as in `Answers`."""
    checks = list(checks)
    has_own_weights = any(stage.startswith(DEQUANTIZED) for stage in profile.rules)
    if not has_own_weights and profile.name in EXACT:
        return count(checks), None
    about_cost = {*cost_stages(profile.rules.keys()), *QUESTION_STAGES}
    about_cost |= {stage for stage in profile.rules if stage.startswith(ROUNDED)}
    cost = count(check for check in checks if check.stage in about_cost)
    graph = count(check for check in checks if check.stage not in about_cost)
    is_answered = any(check.stage.startswith(DEQUANTIZED) for check in checks) or graph.failed
    return graph if is_answered else None, cost


def count(checks: Iterable[Judged]) -> Answer:
    passed = [check.passed for check in checks]
    return Answer(len(passed), passed.count(False))


def lines(evidence: Evidence) -> Iterator[str]:
    """`graph: right (132 checks)` and `int4 costs: KL 0.012, top-1 98.1 % of 4,810 positions, …`; of evidence of an
    earlier version too."""
    graph, cost = answer(evidence.checks, evidence.profile)
    yield f"graph: {graph_line(graph)}"
    name, total = evidence.profile.name, evidence.precision
    parts = [logit_line(total) if total is not None else "not measured"]
    if total is not None and total.accuracy is not None:
        there = "" if total.reference_accuracy is None else f" ({total.reference_accuracy:.1%} in PyTorch)"
        parts.append(f"{total.accuracy:.1%} of {total.questions} questions right{there}")
    if cost is not None:
        parts.append(limit_line(cost, evidence.profile))
    yield f"{name} costs: {', '.join(parts)}"
    for task, score in (evidence.tasks or {}).items():
        if task != EXAM:
            yield describe(task, score)
    answers = evidence.answers
    if answers is not None and answers.rounding is not None:
        yield f"of that, 8-bit activations: {logit_line(answers.rounding)}"
    if answers is not None and knows_nothing(answers) and (total is None or total.accuracy is None):
        yield (
            "note: PyTorch itself predicts the text of the matrix no better than chance, as with random weights: what "
            "the precision costs here says little about a trained model"
        )


def knows_nothing(answers: Answers) -> bool:
    return answers.text_loss is not None and answers.text_loss >= CHANCE


def graph_line(graph: Answer | None) -> str:
    if graph is None:
        return "cannot be told from the cost of rounding, without the artifact's weights in PyTorch"
    return (
        f"WRONG ({graph.failed} of {graph.checks} checks failed)" if graph.failed else f"right ({graph.checks} checks)"
    )


def limit_line(cost: Answer, profile: Profile) -> str:
    """Whether the cost is within its limits."""
    if not any(profile.rules.get(stage) for stage in COST_STAGES):
        return "which the recipe does not limit"
    if cost.failed:
        return f"ABOVE its limits in {cost.failed} of {cost.checks} checks"
    return f"within its limits ({cost.checks} checks)"


def logit_line(cost: LogitCost) -> str:
    """`KL 0.012 on average and 0.84 at worst, top-1 97.1 % of 1,234 positions`."""
    mean, worst, top1 = cost.mean_kl, cost.worst_kl, cost.top1_agreement
    numbers = "not measured" if mean is None or worst is None else f"{mean:.2g} on average and {worst:.2g} at worst"
    same = "not measured" if top1 is None else f"{100 * top1:.4g} %"
    return f"KL {numbers}, top-1 {same} of {cost.positions:,} positions"
