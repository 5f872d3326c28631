"""What a verification leaves behind: the schema of parity.json, the page for people, and the history."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from parity_tests.fixtures.paths import DOCS, FIXTURES
from parity_tests.fixtures.standin import artifact_without_graphs
from parity_tests.harness.cases.matrix import load_matrix
from parity_tests.harness.checks.dequantized import add_own_weights_rules
from parity_tests.harness.diagnosis.layer_trace import Trail
from parity_tests.harness.evidence import history
from parity_tests.harness.evidence.charts import STEPS, heatmap, line, log_axis, step_of
from parity_tests.harness.evidence.history import PastRun
from parity_tests.harness.evidence.page import render
from parity_tests.harness.evidence.report import Report
from parity_tests.harness.evidence.schema import schema_text
from parity_tests.harness.evidence.sections import short
from parity_tests.harness.judging.outcome import Finding, Outcome, judge
from parity_tests.harness.judging.verdicts import load_profile
from parity_tests.harness.verify import write_evidence
from qwen3vl_export.evidence import Answer, CheckpointSource, Evidence, Point, Summary, summarize
from qwen3vl_export.evidence.answers import lines as answer_lines
from qwen3vl_export.json_form import from_json, from_values, to_json, to_values

SCHEMA = DOCS / "parity.schema.json"
VALIDATOR = Draft202012Validator(json.loads(schema_text()))
FROZEN = FIXTURES / "evidence"  # files that earlier versions wrote
PROFILE = load_profile("float32")
POINT = Point("written", "layers.1.mlp.up_proj", "output", "MatMul", 1e-3, 0.61, 2.0, True)
TRAIL = Trail(
    "decoder_model_merged",
    "minimum-64x64",
    (replace(POINT, module="layers.0.mlp.up_proj", nmse=1e-13, diverged=False), POINT),
    ("lm_head",),
    ("written",),
)


def vision(case: str, max_abs: float | None) -> Outcome:
    values = {"max_abs": max_abs, "scaled_max_abs": max_abs and max_abs / 4, "worst_token_cosine": 1.0}
    finding = Finding(values, compared=4, where="worst <here>")
    return judge("vision", case, finding, PROFILE, 0.5)


def report(*outcomes: Outcome, trails: tuple[Trail, ...] = ()) -> Report:
    checkpoint = CheckpointSource("x", "local")
    found = Report("tiny", "0" * 64, checkpoint, "quick", load_matrix().seed, PROFILE, outcomes, len(outcomes))
    return replace(found, trails=trails, seconds={"total": 1.0}, reference_results={"computed": 1, "from_disk": 0})


GOOD = report(vision("minimum-64x64", 1e-5), vision("wide-512x128", 3e-5))
BAD = report(
    vision("minimum-64x64", 1e-5),
    vision("wide-512x128", 2.5),
    vision("photograph-451x300", math.nan),
    Outcome("decoder", "batch-of-different-sizes", 0.1, error="RuntimeError: no such kernel"),
    vision("grids-mixed", None),
    trails=(TRAIL,),
)


CHECK = to_values(GOOD.evidence())["checks"][0]
VERDICT = CHECK["verdicts"][0]


def test_the_published_schema_is_the_code_s() -> None:
    assert SCHEMA.read_text("utf-8") == schema_text(), (
        "python -m parity_tests.harness.evidence.schema > docs/parity.schema.json"
    )


@pytest.mark.parametrize("written", [GOOD, BAD], ids=["good", "bad"])
def test_what_is_written_follows_the_schema_and_is_read_again(written: Report) -> None:
    VALIDATOR.validate(json.loads(written.to_json()))
    assert to_json(from_json(Evidence, written.to_json()), indent=1) + "\n" == written.to_json()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"passed": None}, "passed is not true or false"),
        ({"novelty": 1}, "novelty is an unknown key"),
        ({"manifest_sha256": "abc"}, "manifest_sha256 does not match"),
        ({"summary": {"vision": {}}}, "summary.vision.checks is missing"),
        ({"format": 2}, "format is not one of 1"),
        ({"matrix": "huge"}, "matrix is not one of quick, release, standard, full"),
        ({"planned": -1}, "planned is less than 0"),
        ({"planned": True}, "planned is not an integer"),
        ({"planned": 1.5}, "planned is not an integer"),
        ({"seconds": {"total": "NaN"}}, "seconds.total is not a number"),
        ({"checks": {}}, "checks is not a list"),
        ({"checks": [{**CHECK, "where": None}]}, r"checks\[0\].where is not text"),
        ({"checks": [{**CHECK, "seconds": -1}]}, r"checks\[0\].seconds is less than 0"),
        ({"checks": [{**CHECK, "measures": {"max_abs": "much"}}]}, r"checks\[0\].measures.max_abs is not"),
        ({"checks": [{**CHECK, "verdicts": [VERDICT | {"kind": "about"}]}]}, r"verdicts\[0\].kind is not one of 'max'"),
        ({"profile": {"name": "x", "settings": [], "rules": {}}}, "profile.settings is not an object"),
    ],
)  # fmt: skip
def test_neither_reader_nor_schema_takes_what_is_no_evidence(change: dict[str, Any], reason: str) -> None:
    values = {**to_values(GOOD.evidence()), **change}
    with pytest.raises(ValueError, match=reason):
        from_values(Evidence, values)
    assert not VALIDATOR.is_valid(values)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, b"\xff", '{"format": NaN}'])
def test_what_is_not_even_an_object_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        from_json(Evidence, text)


def test_files_of_the_version_before_are_read_and_written_as_they_were() -> None:
    text = (FROZEN / "parity.json").read_text("utf-8")
    VALIDATOR.validate(json.loads(text))
    evidence = from_json(Evidence, text)
    assert to_json(evidence, indent=1) + "\n" == text
    assert evidence.answers is None and next(answer_lines(evidence)).startswith("graph: cannot be told")
    assert [check.id for check in evidence.failures] == ["vision[photograph-451x300]", "decode[text-only]"]
    assert math.isnan(evidence.failures[0].measures["max_abs"] or 0)
    assert Page(render(evidence, load_matrix())).open == []
    summary = (FROZEN / "summary.json").read_text("utf-8")
    assert to_json(from_json(Summary, summary)) == summary
    assert summarize(evidence) == from_json(Summary, summary)
    lines = (FROZEN / "parity-history.jsonl").read_text("utf-8").splitlines()
    assert [to_json(from_json(PastRun, line)) for line in lines] == lines
    assert [run.profile for run in history.of_artifact(FROZEN / "parity-history.jsonl", "tiny-int4")] == ["int4"]


def logits(stage: str, case: str, positions: int, kl: float, worst: float, top1: float) -> Outcome:
    measures = {
        "max_abs": 0.1,
        "scaled_max_abs": 0.01,
        "mean_kl": kl,
        "worst_kl": worst,
        "top1_agreement": top1,
        "positions": positions,
    }
    return judge(stage, case, Finding(measures, compared=positions), PROFILE, 0.5)


COSTLY = report(
    logits("prefill", "text-only", 10, 0.5, 2.0, 1.0),
    logits("decode", "text-only", 30, 0.1, 0.3, 0.9),
    logits("decoder", "text-only", 10, 9.0, 9.0, 0.0),  # given PyTorch's rows: no part of the sum
    judge(
        "accuracy",
        "all-questions",
        Finding({"questions": 200, "accuracy": 0.915, "reference_accuracy": 0.935, "answer_differences": 9}, 200),
        PROFILE,
        0.5,
    ),
)


def test_what_a_precision_costs_is_pooled_over_positions() -> None:
    cost = COSTLY.precision()
    assert cost is not None
    assert cost.mean_kl == pytest.approx(0.2) and cost.worst_kl == 2.0
    assert cost.top1_agreement == pytest.approx(0.925) and cost.positions == 40
    assert list(answer_lines(COSTLY.evidence())) == [
        "graph: WRONG (4 of 4 checks failed)",
        "float32 costs: KL 0.2 on average and 2 at worst, top-1 92.5 % of 40 positions, "
        "91.5% of 200 questions right (93.5% in PyTorch)",
    ]
    assert GOOD.precision() is None
    from_json(Evidence, COSTLY.to_json())
    assert "What the precision costs" in page(COSTLY).text and "91.5 %" in page(COSTLY).text


LEVEL_4 = {"decoder_model_merged": {"method": "int4", "accuracy_level": 4}}
RECIPE: dict[str, Any] = {"target": "ort", "dtype": "float32", "quantization": LEVEL_4, "parity": {}}
OWN = add_own_weights_rules(load_profile("int4"), RECIPE, "qwen3_vl")


def quantized(right: bool, cheap: bool, text_loss: float = 0.3) -> Report:
    """A report of an int4 artifact: one check of the graph, one of the cost, and what rounding activations costs."""
    near = {"max_abs": 1e-5, "scaled_max_abs": 1e-6, "worst_kl": 1e-9, "mean_kl": 1e-9, "top1_agreement": 1.0}
    far = {"max_abs": 9.0, "scaled_max_abs": 0.9, "worst_kl": 9.0, "mean_kl": 2.0, "top1_agreement": 0.1}
    measures = {
        "dequantized_decoder": near if right else far,
        "prefill": near if cheap else far,
        "teacher_forced": {**near, "text_loss": text_loss},
        "rounded_decoder": far,
    }
    outcomes = [
        judge(stage, "text-only", Finding({**values, "positions": 10}, 10), OWN, 0.5)
        for stage, values in measures.items()
    ]
    return replace(report(*outcomes), profile=OWN)


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("cheap", [True, False])
def test_a_wrong_graph_and_a_coarse_precision_are_told_apart(right: bool, cheap: bool) -> None:
    written = quantized(right, cheap)
    answers = written.answers()
    assert answers.graph == Answer(1, int(not right)) and answers.cost == Answer(3, int(not cheap))
    assert written.passed == (right and cheap)
    graph, cost, rounding = answer_lines(written.evidence())
    assert graph == ("graph: right (1 checks)" if right else "graph: WRONG (1 of 1 checks failed)")
    assert cost.startswith("int4 costs: KL ") and ("ABOVE its limits in 1 of 3 checks" in cost) is not cheap
    assert rounding == "of that, 8-bit activations: KL 2 on average and 9 at worst, top-1 10 % of 10 positions"
    assert all(line in page(written).text for line in (graph, cost, rounding))
    VALIDATOR.validate(json.loads(written.to_json()))


@pytest.mark.parametrize(
    ("cost", "passes", "said"),
    [
        ({"mean_kl": 2.5, "top1_agreement": None}, True, "within its limits (3 checks)"),
        ({"mean_kl": 2.5, "top1_agreement": 0.5}, False, "ABOVE its limits in 1 of 3 checks"),
        ({"mean_kl": None, "top1_agreement": None}, True, "which the recipe does not limit"),
    ],
)
def test_a_recipe_states_what_its_precision_may_cost(cost: dict[str, Any], passes: bool, said: str) -> None:
    recipe = {**RECIPE, "parity": {"cost": cost}}
    profile = add_own_weights_rules(load_profile("int4"), recipe, "qwen3_vl")
    for right in (True, False):
        old = quantized(right, cheap=False)
        judged = [
            judge(outcome.stage, outcome.case, Finding(outcome.measures, 10), profile, 0.5) for outcome in old.outcomes
        ]
        written = replace(old, outcomes=judged, profile=profile)
        assert written.passed == (passes and right)
        graph, line, *_ = answer_lines(written.evidence())
        assert graph.startswith("graph: right" if right else "graph: WRONG") and line.endswith(said)


@pytest.mark.parametrize("passes", [True, False])
def test_prefill_in_chunks_proves_the_graph_where_no_call_is_rounded_by_itself(passes: bool) -> None:
    finding = Finding({"scaled_max_abs": 0.0 if passes else 1.0, "scaled_cache_max_abs": 0.0}, 1)
    stages = ("chunked", "dequantized_chunked")
    for stage in stages:
        written = replace(report(judge(stage, "text-only", finding, OWN, 0.5)), profile=OWN)
        answers, judged = written.answers(), Answer(1, int(not passes))
        assert (answers.cost if stage == "chunked" else answers.graph) == judged


def test_a_checkpoint_that_knows_nothing_is_named() -> None:
    assert "no better than chance" in list(answer_lines(quantized(True, False, text_loss=1.02).evidence()))[-1]
    assert len(list(answer_lines(quantized(True, False, text_loss=0.4).evidence()))) == 3


def test_limits_alone_do_not_answer_for_a_quantized_graph_without_its_weights() -> None:
    unanswered = replace(quantized(True, True), profile=load_profile("int4"))
    kept = [outcome for outcome in unanswered.outcomes if outcome.stage == "prefill"]
    written = replace(unanswered, outcomes=kept, planned=1)
    assert written.answers().graph is None and written.answers().cost == Answer(1, 0)
    assert next(answer_lines(written.evidence())).startswith("graph: cannot be told")


class Page(HTMLParser):
    """Counts elements and gathers text; fails on a tag that is closed and was not open."""

    VOID = ("meta", "img", "br", "rect", "line", "polyline", "circle", "i")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += " " + " ".join(data.split())


def page(written: Report, runs: list[PastRun] | None = None) -> Page:
    return Page(render(written.evidence(), load_matrix(), runs or []))


def test_the_page_is_one_file_with_the_verdict_first() -> None:
    parsed = page(GOOD)
    assert parsed.open == []
    assert parsed.text.split("Stage by stage")[0].count("Passed") >= 1
    assert all(source.startswith("data:image/") for source in parsed.sources)
    assert "script" not in parsed.tags
    assert "link" not in parsed.tags


def test_the_page_of_a_failure_says_what_and_where() -> None:
    parsed = page(BAD)
    assert "Failed" in parsed.text
    assert "RuntimeError: no such kernel" in parsed.text
    assert "worst <here>" in parsed.text  # as text, not as markup
    assert re.search(r"verify ARTIFACT --case \S+ --seed \d+ --bisect", parsed.text)
    assert "decoder layer 1, mlp.up_proj (MatMul): worst-token cosine 0.61" in parsed.text
    assert parsed.tags.count("img") >= 2  # the pictures of failing cases
    assert "not measured" in parsed.text


def test_every_case_of_the_matrix_can_be_drawn_on_the_page() -> None:
    cases = load_matrix().of_tier("standard")
    text = render(report(*(vision(case.name, 1.0) for case in cases)).evidence(), load_matrix())
    assert Page(text).open == []


def test_the_history_grows_by_a_line_and_shows_on_the_page(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    for written in (GOOD, BAD, GOOD):
        history.append(path, written.evidence())
    with path.open("a") as file:
        file.write('{"artifact": "tiny", half a li\n')
    history.append(path, replace(GOOD, artifact="another").evidence())
    runs = history.of_artifact(path, "tiny")
    assert [run.passed for run in runs] == [True, False, True]
    assert runs[0].worst["vision"]["max_abs"] == 3e-5
    assert math.isnan(runs[1].worst["vision"]["max_abs"] or 0)
    assert len(path.read_text().splitlines()) == 5
    assert "last 3 verifications" in page(GOOD, runs).text
    assert "Over time" not in page(GOOD, runs[:1]).text


def test_a_missing_history_is_empty(tmp_path: Path) -> None:
    assert history.of_artifact(tmp_path / "none.jsonl", "tiny") == []


def test_the_colour_scale_is_even_in_the_logarithm() -> None:
    assert [step_of(10.0**power, 1e-7, 1e0) for power in range(-7, 1)] == [0, 1, 2, 3, 4, 5, 6, STEPS - 1]
    assert step_of(math.inf, 1e-7, 1.0) == STEPS - 1


def test_a_cell_shows_the_worst_of_its_class() -> None:
    chart = heatmap({"a": (64, 64, 1e-5, False), "b": (70, 70, 1e-3, True), "c": (300, 64, 1e-5, False)})
    assert chart is not None
    assert [(cell.label, cell.failed) for cell in chart.cells] == [("1.0e-3", True), ("1.0e-5", False)]
    assert heatmap({"a": (64, 64, None, True)}) is None


def test_a_curve_breaks_where_nothing_was_measured() -> None:
    axis = log_axis([1e-3, 1e-1], 100, 0)
    assert line([1e-3, None, 1e-1, 1e-2], axis, 0, 30) == ["0.0,100.0", "20.0,0.0 30.0,50.0"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "not measured"), (math.nan, "not a number"), (math.inf, "infinite"), (0.0, "0"), (1 - 1e-9, "1 - 1e-09"),
     (0.9967807, "0.9967807"), (4.7e-5, "4.7e-05"), (12345.0, "12,345")],
)  # fmt: skip
def test_numbers_read_well(value: float | None, text: str) -> None:
    assert short(value) == text


def test_a_trail_says_what_agrees_before_it() -> None:
    assert TRAIL.message == (
        "decoder layer 1, mlp.up_proj (MatMul): worst-token cosine 0.61, max abs 2, after written. "
        "The last value that agrees: decoder layer 0, mlp.up_proj (MatMul)"
    )
    assert TRAIL.record.unmatched == ("lm_head",)


def a_directory(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def no_text(path: Path) -> None:
    path.write_bytes(b"\xff\0" * 99 + b"{")


def other_values(path: Path) -> None:
    path.write_text("[1]\nnull\n" + "[" * 99_999 + '\n{"artifact": "tiny"}\n' + "x" * 2_000_000 + "\n")


def a_file_in_place_of_its_folder(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("")


@pytest.mark.parametrize(
    ("damage", "is_written"),
    [
        (a_directory, False),
        (a_pipe, False),
        (a_file_in_place_of_its_folder, False),
        (no_text, True),
        (other_values, True),
    ],
)
def test_a_history_that_cannot_be_used_is_a_warning_and_the_evidence_is_there(
    damage: Callable[[Path], None], is_written: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / "history.jsonl"
    damage(log)
    (tmp_path / "tiny").mkdir()
    artifact = artifact_without_graphs(tmp_path / "tiny")
    write_evidence(artifact, GOOD, load_matrix(), log)
    assert artifact.evidence_path("parity.json").read_text("utf-8") == GOOD.to_json()
    assert artifact.evidence_path("parity.xml").is_file() and artifact.evidence_path("parity.html").is_file()
    said = capsys.readouterr().out
    assert ("warning: " in said and str(log) in said and "--history" in said) is not is_written
    if is_written:
        assert [run.artifact for run in history.of_artifact(log, GOOD.artifact)] == [GOOD.artifact]


def test_the_evidence_is_written_before_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = artifact_without_graphs(tmp_path)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(history, "record", fail)
    with pytest.raises(KeyboardInterrupt):
        write_evidence(artifact, GOOD, load_matrix(), tmp_path / "history.jsonl")
    assert artifact.evidence_path("parity.json").read_text("utf-8") == GOOD.to_json()
