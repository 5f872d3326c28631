"""PyTorch's side of models that embed or rerank, what is compared of them, and manifests that contradict themselves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen3VLModel

from qwen3vl_export.contract import DECODER, EMBEDDING, HEADS, RERANKER, TEXT
from qwen3vl_export.evidence.answers import answer
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.exporter.checkpoint.adapter import open_adapter
from qwen3vl_export.manifest import Manifest
from qwen3vl_export.promise import (
    DEQUANTIZED,
    HEAD_STAGES,
    PREPARED,
    QUANTIZED_CACHE,
    RUNS,
    TASK,
    broken_promises,
    head_stages,
    missing_checks,
    own_weights_stages,
)
from qwen3vl_export.recipe import load_recipe

from ...fixtures.adapters import write_adapter
from ...fixtures.paths import TINY
from ...harness import verify
from ...harness.budget.activations import results_of
from ...harness.budget.resources import Resources
from ...harness.budget.sizes import CaseSizes, ModelSizes
from ...harness.checks.dequantized import add_own_weights_rules
from ...harness.diagnosis.layer_trace import trace_decoder
from ...harness.judging.outcome import Finding, judge
from ...harness.judging.verdicts import load_profile
from ...harness.plan import Subject, plan
from ...harness.sides.pytorch.head_reference import last_rows, right_padded
from ...harness.sides.pytorch.inputs import Inputs, tokens_compared
from ...harness.sides.pytorch.reference import Reference
from ...harness.sides.pytorch.reference_cache import Store
from ...harness.sides.pytorch.results import Deferred
from ...harness.sides.pytorch.torch_model import load_model, read_config, stream_model

IDS = [[513, 3, 40, 7, 514], [513, 9, 514]]
NO_PICTURES = np.zeros((0, 1536), np.float32), np.zeros((0, 3), np.int64)
INPUTS = right_padded(IDS, 512, *NO_PICTURES)
CASES = ["users-case-16x16-after-24x24", "batch-of-different-sizes"]


@pytest.fixture(scope="module")
def headless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint in the form of Qwen3-VL-Embedding-8B: untied, and without an output head."""
    root = Path(shutil.copytree(TINY, tmp_path_factory.mktemp("headless") / "tiny"))
    config = json.loads((root / "config.json").read_text("utf-8"))
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False
    (root / "config.json").write_text(json.dumps(config), "utf-8")
    tensors = {name: tensor for name, tensor in load_file(root / "model.safetensors").items() if "lm_head" not in name}
    save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})
    return root


@pytest.fixture(scope="module")
def hidden() -> np.ndarray:
    """Last hidden states of each row, as transformers' base class computes them row by row."""
    model = Qwen3VLModel.from_pretrained(TINY, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return np.concatenate([model(torch.tensor([row])).last_hidden_state[:, -1].numpy() for row in IDS])


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_a_model_without_a_head_gives_hidden_states(
    headless: Path, hidden: np.ndarray, streamed: bool, tmp_path: Path
) -> None:
    reference = Reference(headless, Store(tmp_path, "x"), streamed=streamed, head=EMBEDDING)
    if streamed:
        with pytest.raises(Deferred):
            reference.prefill(INPUTS)
        reference.settle()
    outputs = last_rows(reference.prefill(INPUTS).logits, INPUTS.attention_mask)
    assert np.abs(outputs - hidden).max() < 1e-5 * np.abs(hidden).max()


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_a_reranker_gives_the_logits_of_yes_and_no_in_this_order(
    hidden: np.ndarray, streamed: bool, tmp_path: Path
) -> None:
    vocabulary = AutoTokenizer.from_pretrained(TINY).get_vocab()
    table = load_file(TINY / "model.safetensors")["model.language_model.embed_tokens.weight"].float().numpy()
    reference = Reference(TINY, Store(tmp_path, "x"), streamed=streamed, head=RERANKER)
    prefill = reference.obtain(lambda: reference.prefill(INPUTS))
    call = prefill.inputs_embeds, INPUTS.attention_mask, prefill.position_ids
    outputs = prefill.logits
    assert np.abs(reference.decoder(*call) - outputs).max() < 1e-4
    expected = hidden @ table[[vocabulary["yes"], vocabulary["no"]]].T
    assert np.abs(last_rows(outputs, INPUTS.attention_mask) - expected).max() < 1e-4


@pytest.mark.parametrize(
    ("form", "head"), [("tied", EMBEDDING), ("tied", RERANKER), ("headless", EMBEDDING)], ids=lambda value: value
)
def test_adapters_are_merged_whatever_the_head(
    form: str, head: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Whole and a module at a time as the exporter merges them, also into an output head that nothing is read from."""
    base: Path = TINY if form == "tied" else request.getfixturevalue(form)
    settings: dict[str, Any] = {"modules_to_save": ["lm_head"]} if form == "tied" else {}
    adapters = [write_adapter(tmp_path / "adapter", base, target_modules=["q_proj", "down_proj"], **settings)]
    expected = open_checkpoint(str(base)).adapted([open_adapter(str(adapter)) for adapter in adapters])
    whole, streamed = (load(base, adapters, head=head) for load in (load_model, stream_model))
    names = [name for name, _ in whole.named_parameters()]
    assert ("lm_head.weight" in names) == (head == RERANKER)
    for name in names:
        assert torch.equal(whole.get_parameter(name), expected.read(name).float()), name
        assert torch.equal(streamed.parameter(name), whole.get_parameter(name)), name


def test_the_last_token_is_found_on_either_side() -> None:
    values = np.arange(8, dtype=np.float32).reshape(2, 4, 1)
    assert last_rows(values, np.array([[1, 1, 0, 0], [1, 1, 1, 1]])).tolist() == [[1], [7]]
    assert last_rows(values, np.array([[0, 0, 1, 1], [0, 1, 1, 1]])).tolist() == [[3], [7]]


def test_rows_are_padded_on_the_right() -> None:
    assert isinstance(INPUTS, Inputs)
    assert INPUTS.input_ids.tolist() == [IDS[0], [*IDS[1], 512, 512]]
    assert INPUTS.attention_mask.tolist() == [[1] * 5, [1, 1, 1, 0, 0]]


@pytest.mark.parametrize("head", [EMBEDDING, RERANKER])
def test_a_plan_has_the_stages_of_its_head(head: str) -> None:
    subject = Subject.of_recipe(load_recipe(f"tiny-{head}"))
    planned = plan("quick", subject)
    assert {check.stage for check in planned.checks} == {*PREPARED, *HEAD_STAGES[head]}
    ids = [(check.stage, check.name) for check in planned.checks]
    for stage in HEAD_STAGES[head]:
        others = [check for check in ids if check[0] != stage]
        assert list(missing_checks(subject.recipe, subject.graphs, "qwen3_vl", others)) == [stage]


@pytest.mark.parametrize("head", [EMBEDDING, RERANKER])
def test_a_head_has_its_verdicts_in_rounds_and_pieces_too(
    head: str, built: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same measures, but for rounding, where PyTorch is streamed and the artifact's graphs are cut; nothing is
    computed twice."""
    artifact = built(f"tiny-{head}")
    whole = verify.run(verify.open_bench(artifact, "quick"), "quick", cases=CASES)
    monkeypatch.setattr(verify, "must_stream", lambda *_: True)
    monkeypatch.setattr(Resources, "piece", lambda resources: 1_000_000)
    bench = verify.open_bench(artifact, "quick", cache=tmp_path)
    report = verify.run(bench, "quick", cases=CASES)
    assert report.passed and bench.reference.streamed and (report.pieces or {})[DECODER] > 1
    assert {outcome.stage for outcome in report.outcomes} == {*PREPARED, *HEAD_STAGES[head]}
    for before, after in zip(whole.outcomes, report.outcomes, strict=True):
        places = {name for name in after.measures if name.endswith("worst_token")}
        measures, expected = (
            {name: value for name, value in outcome.measures.items() if name not in places}
            for outcome in (after, before)
        )
        assert measures == pytest.approx(expected, rel=1e-2, abs=1e-5), after.id
    results = bench.results.computed
    assert verify.run(bench, "quick", cases=CASES).passed and bench.results.computed == results


@pytest.mark.parametrize("head", [EMBEDDING, RERANKER])
def test_every_layer_of_another_head_is_found_and_agrees(head: str, built: Callable[[str], Path]) -> None:
    bench = verify.open_bench(built(f"tiny-{head}"), "quick")
    trail = trace_decoder(bench, next(case for case in bench.cases if case.name == CASES[0]))
    assert trail is not None and trail.first is None
    assert trail.points[-1].module == "output"


@pytest.mark.parametrize("head", [EMBEDDING, RERANKER])
def test_quantized_weights_of_another_head_are_told_from_a_wrong_graph(head: str) -> None:
    recipe: dict[str, Any] = load_recipe("tiny-int8").to_json_dict() | {"head": head}
    alone, end_to_end = HEAD_STAGES[head]
    stages = own_weights_stages(recipe)
    assert stages == [f"{DEQUANTIZED}{stage}" for stage in ("vision", "embeddings", alone)]
    rounding = {graph: {**weights, "method": "int8_dynamic"} for graph, weights in recipe["quantization"].items()}
    stages = own_weights_stages({**recipe, "quantization": rounding})
    assert stages == [
        *(f"{DEQUANTIZED}{stage}" for stage in ("vision", "embeddings", "chunked", alone)),
        "rounded_vision",
    ]
    profile = add_own_weights_rules(load_profile("int8"), recipe, "")
    finding = Finding({"scaled_max_abs": 0.02, "max_abs": 0.02, "worst_token_cosine": 0.999, "length_error": 0.0}, 1)
    checks = [judge(stage, "a", finding, profile, 0.0) for stage in (alone, end_to_end, f"{DEQUANTIZED}{alone}")]
    graph, cost = answer(checks, profile)
    assert graph is not None and (graph.checks, graph.failed) == (1, 1)
    assert cost is not None and (cost.checks, cost.failed) == (2, 0)


@pytest.mark.parametrize("head", [EMBEDDING, RERANKER])
def test_prompts_of_another_head_are_as_long_as_their_estimate(head: str, built: Callable[[str], Path]) -> None:
    bench = verify.open_bench(built(f"tiny-{head}"), "quick")
    assert bench.resources is not None
    for case in (case for case in bench.cases if case.name in bench.resources.cases and not case.is_vision_only):
        sizes, prepared = bench.resources.cases[case.name], bench.prepared(case)
        assert sum(sizes.frames) == len(prepared.pixel_values), case.name
        tokens = prepared.input_ids.shape[1]
        assert tokens - 2 <= sizes.tokens <= 1.1 * tokens + 16, case.name
        assert sizes.compared == sizes.tokens and not sizes.forced and not sizes.new


def test_outputs_of_other_heads_are_compared_at_every_token_and_sized() -> None:
    rows = np.empty((2, 5000, 1))
    assert [tokens_compared(rows, 151_936, head) for head in HEADS] == [526, 5000, 5000]
    case = CaseSizes("long", rows=1, tokens=5000, compared=5000)
    model = replace(ModelSizes.of(read_config(TINY)[0]), vocabulary=151_936)
    text, embedding, reranker = (results_of(replace(model, head=head), case) for head in HEADS)
    assert embedding - reranker == 4 * 5000 * (model.hidden - 2)
    assert text - embedding == 4 * 5000 * (151_936 - model.hidden)
    batch = replace(case, rows=2)
    assert [results_of(replace(model, head=head), batch) for head in HEADS] == [2 * text, 4 * embedding, 4 * reranker]


def test_every_stage_belongs_to_a_head() -> None:
    stages = [stage for head in HEADS for stage in head_stages({"head": head})]
    assert {*stages, TASK, QUANTIZED_CACHE} == set(RUNS)  # questions of users are nobody's promise
    assert head_stages({}) == head_stages({"head": None}) == head_stages({"head": TEXT})


def test_a_manifest_of_an_earlier_version_is_of_a_model_that_answers(tiny_artifact: Path) -> None:
    values = json.loads((tiny_artifact / "manifest.json").read_text("utf-8"))
    del values["facts"]["head"], values["recipe"]["head"]
    assert Manifest.from_json(json.dumps(values)).facts.head == TEXT


@pytest.mark.parametrize(("said", "asked"), [(EMBEDDING, TEXT), (TEXT, RERANKER)])
def test_a_manifest_of_another_head_than_its_recipe_is_refused(said: str, asked: str) -> None:
    recipe: dict[str, Any] = load_recipe("tiny").to_json_dict() | {"head": asked, "graphs": []}
    facts = {"patch_size": 16, "head": said}
    manifest = {"recipe": recipe, "facts": facts, "files": {}, "encoders": [], "graphs": {}}
    assert f"its model is one for {said}, its recipe asks for {asked}" in list(broken_promises(manifest))
