"""`verify --tasks` from end to end: scores of both sides in the evidence, within every budget, or one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from parity_tests.fixtures.paths import TINY
from parity_tests.harness import plan as plans
from parity_tests.harness import verify as harness
from parity_tests.harness.budget.activations import logits_of, need_of, outputs_of, results_of
from parity_tests.harness.budget.cut import within_time
from parity_tests.harness.budget.estimate import estimate
from parity_tests.harness.budget.resources import Resources
from parity_tests.harness.budget.sizes import CaseSizes, ModelSizes, question_sizes
from parity_tests.harness.budget.table import show
from parity_tests.harness.cases.exam import exam_groups
from parity_tests.harness.cases.matrix import Matrix, load_matrix
from parity_tests.harness.cases.task_files import load_task, write_task
from parity_tests.harness.cases.tasks import PictureFile, Question
from parity_tests.harness.judging.outcome import Outcome
from parity_tests.harness.options import Options
from parity_tests.harness.plan import Subject, plan, questions_of
from parity_tests.harness.rounds import carry_out_all
from parity_tests.harness.sides.pytorch.torch_model import read_config
from parity_tests.harness.unfinished import identity_of
from parity_tests.harness.verify import HTML
from qwen3vl_export.artifact import JUNIT, PARITY, open_artifact
from qwen3vl_export.errors import ParityError
from qwen3vl_export.evidence import Evidence
from qwen3vl_export.evidence.answers import lines
from qwen3vl_export.json_form import from_json
from qwen3vl_export.promise import TASK
from qwen3vl_export.publishing.model_card import task_table

from ...fixtures.commands import assert_one_line, invoke

DRAWN = [question for group in exam_groups(1).values() for question in group][:3]
WRONG = replace(DRAWN[0], id="wrong", kind="never right", answers=("what nobody would answer",))
NAMES = tuple(f"drawn/{question.id}" for question in (*DRAWN, WRONG))


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    """Three questions that the tiny checkpoint answers right, and one whose answer is never right."""
    path = tmp_path / "task" / "drawn.jsonl"
    path.parent.mkdir()
    write_task(path, [*DRAWN, WRONG])
    return path


@pytest.fixture
def small_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cases instead of thirteen."""
    matrix = load_matrix()
    small = matrix.model_copy(
        update={"cases": [case for case in matrix.cases if case.name in ("minimum-64x64", "text-only")]}
    )

    def load() -> Matrix:
        return small

    monkeypatch.setattr(harness, "load_matrix", load)
    monkeypatch.setattr(plans, "load_matrix", load)


def test_scores_of_both_sides_are_in_the_evidence(
    artifact: Path, task_file: Path, small_matrix: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert harness.verify(artifact, Options("quick", tasks=(task_file,))) == 0
    shown = " ".join(capsys.readouterr().out.split())
    line = "task drawn: score 75.0 % (75.0 % in PyTorch) of 4 questions, difference +0.0 points"
    assert line in shown and "same answer to 100.0 %" in shown
    evidence = from_json(Evidence, (artifact / PARITY).read_bytes())
    assert any(line in text for text in lines(evidence))
    assert evidence.tasks is not None
    task = evidence.tasks["drawn"]
    assert task.sha256 == load_task(task_file).sha256 and set(task.kinds) == {q.kind for q in (*DRAWN, WRONG)}
    assert (task.every.questions, task.every.score.value, task.every.only_artifact) == (4, 0.75, 0)
    assert task.kinds["never right"].score.value == 0 and task.every.score.low < 0.75 < task.every.score.high
    checks = {check.case: check for check in evidence.checks if check.stage == TASK}
    assert tuple(checks) == NAMES and "task[drawn/wrong]" in (artifact / JUNIT).read_text("utf-8")
    for question, check in zip((*DRAWN, WRONG), checks.values(), strict=True):
        (answered,) = check.answers or ()
        assert (answered.id, answered.kind, answered.same) == (question.id, question.kind, True)
        assert answered.answer == answered.reference_answer and answered.score == (question is not WRONG)
        assert check.measures["id_differences"] == check.measures["pixel_max_abs"] == 0
    page = (artifact / HTML).read_text("utf-8")
    assert "Task drawn" in page and page.count("never right") == 1
    card = "\n".join(task_table("drawn", task))
    assert "| all | 4 | 75.0 % | 75.0 % | +0.0 points" in card and (task.sha256 or "?") in card


def test_a_plan_and_a_budget_of_time_know_of_every_question(
    tiny_artifact: Path, task_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = load_task(task_file)
    bench = harness.open_bench(tiny_artifact, "quick", tasks=[task])
    subject = Subject.of_artifact(bench.artifact)
    planned = plan("quick", subject, bench.matrix, tasks=[task])
    assert bench.resources is not None
    estimated = estimate(bench, planned, bench.resources)
    show(estimated, tiny_artifact)
    (row,) = (line.split() for line in capsys.readouterr().out.splitlines() if "task drawn" in line)
    sizes = [bench.resources.cases[name] for name in NAMES]
    assert [row[2], row[3].replace(",", "")] == ["4", str(sum(size.tokens for size in sizes))]
    for question, size in zip(task.questions, sizes, strict=True):
        prepared = bench.prepare([question.prompt])
        assert sum(size.frames) == len(prepared.pixel_values) and size.new == question.new_tokens
        assert 0 <= size.tokens - prepared.input_ids.shape[1] <= 16
    seconds = {check.id: 0.0 if check.stage != TASK else 1.0 for check in planned.checks}
    cut = within_time(planned, subject, seconds, 0.0, 2.5)
    assert [check.name for check in cut.checks if check.stage == TASK] == list(NAMES[:2])
    assert cut.left_out[f"{TASK} drawn"] == "its last 2 questions left out for time: about 2 s"
    costly = seconds | {f"task[{NAMES[1]}]": 9.0}
    cut = within_time(planned, subject, costly, 0.0, 2.5)
    assert [check.name for check in cut.checks if check.stage == TASK] == list(NAMES[:1])  # and not the cheap ones
    assert within_time(planned, subject, seconds, 0.0, 4.5).checks == planned.checks


def test_a_question_takes_memory_for_its_answer_and_disk_for_its_pictures() -> None:
    """PyTorch has the logits of a whole answer, the artifact those of a step; neither is stored."""
    model = ModelSizes.of(read_config(TINY)[0])
    short, long = (CaseSizes("q", 1, 100, 1, 0, new, (256,), asked=True) for new in (1, 1000))
    assert need_of(model, long.joined).total - need_of(model, short.joined).total > 4 * 999 * model.vocabulary
    assert logits_of(model, long) == logits_of(model, short) == model.vocabulary
    assert results_of(model, long) == results_of(model, short) == 4 * 256 // model.merge_unit * model.wide
    assert outputs_of(model, long) == 0 and results_of(model, replace(long, frames=())) == 0


def test_a_question_is_asked_again_by_its_name(
    artifact: Path, task_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = Options(cases=(f"task[{NAMES[1]}]", NAMES[3]), tasks=(task_file,))
    assert harness.verify(artifact, options) == 0
    assert "passed: 2 of 2 checks" in capsys.readouterr().out and not (artifact / PARITY).exists()
    with pytest.raises(ParityError, match="no case named drawn/none"):
        harness.verify(artifact, replace(options, cases=("drawn/none",)))


def test_a_changed_task_is_not_resumed(tiny_artifact: Path, task_file: Path) -> None:
    def identity() -> dict[str, str]:
        bench = harness.open_bench(tiny_artifact, "quick", tasks=[load_task(task_file)], cases=NAMES[:1])
        return identity_of(bench, "quick", ())

    first = identity()
    assert identity() == first
    shutil.copyfile(task_file.parent / "pictures" / "wrong-0.png", task_file.parent / "pictures" / "64x64-0-0.png")
    write_task(task_file, DRAWN)
    changed = {name for name, digest in identity().items() if digest != first[name]}
    assert changed == {"a task"}


def test_outcomes_keep_their_answers_on_disk(tiny_artifact: Path, task_file: Path) -> None:
    bench = harness.open_bench(tiny_artifact, "quick", tasks=[load_task(task_file)], cases=NAMES)
    for outcome in outcomes_of(bench, NAMES):
        written = outcome.to_json()
        read = Outcome.from_json(json.loads(json.dumps(written)))
        assert read.to_json() == written and read.answers == outcome.answers and read.answers


def outcomes_of(bench: harness.Bench, names: Sequence[str]) -> list[Outcome]:
    planned = plan("quick", Subject.of_artifact(bench.artifact), bench.matrix, names, bench.tasks)
    return carry_out_all(bench, planned.checks)


@pytest.mark.parametrize("piece", [None, 0])
def test_a_streamed_pytorch_answers_in_rounds_as_the_whole_model_does(
    piece: int | None,
    tiny_artifact: Path,
    task_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All questions share its passes over the checkpoint, and the pieces of an artifact that is run in pieces; the
    artifact's sessions are closed while PyTorch computes."""
    task = load_task(task_file)
    whole = outcomes_of(harness.open_bench(tiny_artifact, "quick", tasks=[task], cases=NAMES), NAMES)
    monkeypatch.setattr(harness, "must_stream", lambda *_: True)
    monkeypatch.setattr(Resources, "piece", lambda self: piece)
    bench = harness.open_bench(tiny_artifact, "quick", tasks=[task], cases=NAMES, cache=tmp_path / "cache")
    settled: list[int] = []
    settle = bench.reference.settle

    def counted(*arguments: object) -> None:
        settled.append(len(bench.reference.results.requests))
        assert not bench.reference.results.requests or not bench.runtime.sessions._sessions
        settle(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(bench.reference, "settle", counted)
    streamed = outcomes_of(bench, NAMES)
    assert settled == [3]  # all at once
    for outcome, expected in zip(streamed, whole, strict=True):
        assert (outcome.passed, outcome.measures, outcome.answers) == (
            expected.passed,
            expected.measures,
            expected.answers,
        )


def test_a_question_that_the_model_cannot_be_asked_is_refused_at_once(tiny_artifact: Path) -> None:
    bench = harness.open_bench(tiny_artifact, "quick", cases=["text-only"])
    long = Question("drawn", "1", "all", (), "word " * 20_000, ("?",), where="drawn.jsonl:1")
    thread = replace(long, text="?", images=(PictureFile(Path("a.png"), (9000, 4)),))
    with pytest.raises(ParityError, match=r"drawn\.jsonl:1: about .* tokens .*, the context holds"):
        question_sizes(long, bench.runtime.preparer)
    with pytest.raises(ParityError, match=r"drawn\.jsonl:1: .*2250 times"):
        question_sizes(thread, bench.runtime.preparer)


def test_a_file_that_cannot_be_used_is_one_line(tiny_artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "?", "answers": ["a"], "metric": "exactly"}\n')
    result = invoke("verify", str(tiny_artifact), "--tasks", str(tmp_path / "q.jsonl"))
    assert_one_line(result, "q.jsonl:1: no metric named 'exactly'. Did you mean exact?")


def test_an_artifact_without_answers_is_refused(tiny_artifact: Path, tmp_path: Path, task_file: Path) -> None:
    manifest = open_artifact(tiny_artifact, check=False).manifest
    facts = replace(manifest.facts, head="embedding")
    opened = replace(open_artifact(tiny_artifact, check=False), manifest=replace(manifest, facts=facts))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(harness, "open_artifact", lambda *_: opened)
        with pytest.raises(ParityError, match="its head is embedding, it answers no questions"):
            harness.open_bench(tiny_artifact, "quick", tasks=[load_task(task_file)])


def test_every_question_of_a_plan_is_listed_once(tiny_artifact: Path, task_file: Path) -> None:
    subject = Subject.of_artifact(open_artifact(tiny_artifact, check=False))
    task = load_task(task_file)
    planned = plan("standard", subject, tasks=[task])
    asked = [question.name for question in questions_of(planned)]
    assert len(asked) == len(set(asked)) and set(NAMES) < set(asked)
    assert planned.tasks == {"drawn": task.sha256}
