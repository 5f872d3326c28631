"""Artifacts larger than memory: graphs cut at their layers compute what the whole graphs do, one piece at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from parity_tests.faults.catalogue import FAULTS
from parity_tests.faults.detection import first_failure
from parity_tests.harness import verify
from parity_tests.harness.budget import resources
from parity_tests.harness.budget.resources import Resources
from parity_tests.harness.cases.matrix import load_matrix
from parity_tests.harness.sides.artifact import cut_sessions
from parity_tests.harness.sides.artifact.artifact_results import ArtifactResults, open_store
from parity_tests.harness.sides.artifact.cut_sessions import WITHOUT_PACKING, PiecedSession, Pieces
from parity_tests.harness.sides.artifact.graph_pieces import CutGraph
from parity_tests.harness.sides.artifact.probe import open_reader
from parity_tests.harness.sides.bench import conversation
from parity_tests.harness.sides.pytorch.results import Deferred
from qwen3vl_export.artifact import open_artifact
from qwen3vl_export.contract import DECODER, EMBEDDINGS, VISION_ENCODER
from qwen3vl_export.errors import InputError
from qwen3vl_export.runtime import GREEDY, Qwen3VL
from qwen3vl_export.runtime.generate import prefill
from qwen3vl_export.runtime.session import Sessions, load_session

CASE = "batch-of-different-sizes"
SOME, ALL = 1_200_000, 0  # bytes of weights that may be open: several layers, or as few as can be

LAYERS = 6  # pieces of the tiny decoder, cut wherever it can be


def decoder_of(artifact: Path) -> CutGraph:
    return CutGraph(onnx.load(open_artifact(artifact, False).graph_path(DECODER), load_external_data=False))


def open_whole(path: Path, options: Any, model: bytes | None = None) -> Any:
    """A graph as a whole, its weights packed where its pieces pack theirs."""
    if not CutGraph(onnx.load(path, load_external_data=False)).packs:
        options.add_session_config_entry(*WITHOUT_PACKING)
    return load_session(path, options, model)


def run(artifact: Path, opener: Callable[..., Any] | None) -> dict[str, Any]:
    """Features, logits and keys and values of a prompt, read in chunks and followed by two tokens."""
    opened, matrix = open_artifact(artifact, False), load_matrix()
    runtime = Qwen3VL(opened, 1)
    runtime.sessions = Sessions(opened, 1, opener)
    (case,) = (case for case in matrix.cases if case.name == CASE)
    prepared = runtime.prepare([conversation(prompt) for prompt in matrix.draw(case)])
    features = runtime.encode_images(prepared.pixel_values, prepared.image_grid_thw)
    logits, cache = prefill(runtime.sessions, prepared, features, 40)
    steps = list(runtime.generate_steps(prepared, 2, GREEDY, stop_ids=frozenset()))
    values = {"features": features, "prefill": logits, "steps": np.stack([step.logits for step in steps])}
    return values | {f"cache {index}": part for index, part in enumerate(cache.parts(prepared.attention_mask))}


@pytest.mark.parametrize("recipe", ["tiny", "tiny-portable", "tiny-bf16", "tiny-int4"])
def test_a_cut_run_equals_the_whole_bit_for_bit(recipe: str, built: Callable[[str], Path]) -> None:
    whole = run(built(recipe), open_whole)
    for budget in (SOME, ALL):
        pieces = Pieces(budget)
        values = run(built(recipe), pieces.open)
        for name, value in values.items():
            np.testing.assert_array_equal(value, whole[name], f"{name}, {pieces.counts}")
    assert pieces.counts[DECODER] == 6 and pieces.counts[VISION_ENCODER] == 18 and pieces.counts[EMBEDDINGS] == 1


def test_weights_that_are_not_packed_change_the_order_of_sums_alone(built: Callable[[str], Path]) -> None:
    packed, values = run(built("tiny"), None), run(built("tiny"), open_whole)
    for name, value in values.items():
        assert np.abs(value - packed[name]).max() <= 1e-5 * np.abs(packed[name]).max(), name


def test_float16_rounds_where_it_is_cut(built: Callable[[str], Path]) -> None:
    """onnxruntime keeps values in float32 between operators that it has not in float16; at a cut they are rounded."""
    whole, values = run(built("tiny-fp16"), None), run(built("tiny-fp16"), Pieces(ALL).open)
    for name, value in values.items():
        assert np.abs(value.astype(np.float32) - whole[name]).max() <= 2e-3 * np.abs(whole[name]).max(), name


@pytest.mark.parametrize("recipe", ["tiny", "tiny-int4", "tiny-bf16"])
def test_pieces_keep_their_budget_and_hold_every_node_once(recipe: str, built: Callable[[str], Path]) -> None:
    cut = decoder_of(built(recipe))
    counts = []
    for budget in (1 << 40, 3 * cut.largest, 2 * cut.largest, cut.largest, 0):
        pieces = cut.pieces(budget)
        counts.append(len(pieces))
        assert all(piece.size <= max(budget, cut.largest) for piece in pieces)
        nodes = [index for piece in pieces for index in piece.nodes]
        assert set(nodes) == set(range(len(cut.model.graph.node)))
        repeated = {index for index in nodes if nodes.count(index) > 1}
        assert all(cut.model.graph.node[index].op_type in ("Cast", "Constant") for index in repeated)
        assert {name for piece in pieces for name in piece.outputs} >= set(cut.outputs)
    assert counts == sorted(counts) and counts[0] == 1 and counts[-1] == 6


def test_few_values_cross_between_layers(built: Callable[[str], Path]) -> None:
    cut = decoder_of(built("tiny"))
    for piece in cut.pieces(0)[1:]:
        assert len([name for name in piece.inputs if name not in cut.inputs]) <= 16


def test_casts_of_weights_count_with_what_they_make(built: Callable[[str], Path]) -> None:
    """onnxruntime casts bfloat16 weights to float32 when it opens a graph, and keeps both."""
    float32, bfloat16 = decoder_of(built("tiny")), decoder_of(built("tiny-bf16"))
    assert float32.folded < 1000  # frequencies alone
    assert bfloat16.largest == pytest.approx(1.5 * float32.largest, rel=0.01)


def test_inner_values_are_read_in_pieces(built: Callable[[str], Path]) -> None:
    path = open_artifact(built("tiny"), False).graph_path(VISION_ENCODER)
    graph = onnx.load(path, load_external_data=False).graph
    names = [node.output[0] for node in graph.node if node.op_type == "LayerNormalization"]
    patches = np.random.default_rng(0).normal(size=(24, 1536)).astype(np.float32)
    feeds = {"pixel_values": patches, "image_grid_thw": np.array([[1, 4, 6]], np.int64)}
    expected = open_reader(path, names, 1, opener=open_whole)(feeds)
    for value, truth in zip(open_reader(path, names, 1, opener=Pieces(ALL).open)(feeds), expected, strict=True):
        np.testing.assert_array_equal(value, truth)


class Deferring:
    """Results of the tiny artifact's decoder, run in pieces."""

    def __init__(self, artifact: Path, directory: Path, together: int = 1 << 30) -> None:
        self.pieces = Pieces(SOME)
        self.results = ArtifactResults(open_store(directory, "x"), True, self.pieces, together)
        self.sessions = Sessions(open_artifact(artifact, False), 1, self.pieces.open)
        self.runtime = Qwen3VL(self.sessions.artifact, 1)
        self.runtime.sessions = self.sessions

    def ask(self, tokens: int, held: int = 1) -> Any:
        """Logits of a prompt of so many tokens."""
        rows = np.full((1, tokens, self.sessions.facts.wide_size), 0.1, np.float32)
        mask, positions = np.ones((1, tokens), np.int64), np.arange(3 * tokens).reshape(3, 1, tokens)
        compute = partial(self.runtime.decode, rows, mask if tokens < 9 else mask[:, 1:], positions)
        return self.results.recall(("logits", tokens), np.ndarray, lambda: compute()[0], held=held)

    def settle(self) -> list[tuple[str, int]]:
        reported: list[tuple[str, int]] = []
        self.results.settle(lambda step, waiting: reported.append((step, waiting)))
        return reported


def test_all_that_is_asked_for_goes_through_the_pieces_together(
    tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deferring = Deferring(tiny_artifact, tmp_path)
    live: list[int] = []
    open_piece = PiecedSession.open_piece

    def counted(session: PiecedSession, step: str) -> Any:
        live.append(deferring.pieces._session is not None)
        return open_piece(session, step)

    monkeypatch.setattr(PiecedSession, "open_piece", counted)
    for tokens in (4, 5, 6):
        with pytest.raises(Deferred):
            deferring.ask(tokens)
    reported = deferring.settle()
    assert [waiting for _, waiting in reported] == [3] * LAYERS
    assert len({step for step, _ in reported}) == LAYERS and live == [False] * LAYERS
    assert [deferring.ask(tokens).shape[1] for tokens in (4, 5, 6)] == [4, 5, 6]
    again = Deferring(tiny_artifact, tmp_path)  # another process finds them on disk
    assert again.ask(4).shape[1] == 4 and not again.results.requests


class Layers:
    """A graph with a piece for each letter, each of ten bytes; records what is opened."""

    def __init__(self, letters: str) -> None:
        self.steps = list(letters)
        self.pieces = [SimpleNamespace(size=10) for _ in letters]
        self.opened = ""

    def open_piece(self, step: str) -> object:
        self.opened += step
        return object()


def pieces_of(graphs: dict[str, Any], budget: int) -> Pieces:
    """Pieces of graphs such as `Layers`, by the names of their steps."""
    pieces = Pieces(budget)
    pieces._graphs.update(graphs)
    return pieces


def test_most_pieces_stay_open_from_token_to_token() -> None:
    """At each token what has no room is opened, and no more; pieces of the tower, which nobody needs by then, give way
    first."""
    graph = Layers("tabcdef")
    pieces = pieces_of(dict.fromkeys(graph.steps, graph), 50)
    opened = []
    for token in ("tabcdef", *["abcdef"] * 4):
        graph.opened = ""
        for step in token:
            with pieces.loaded(step):
                assert len(pieces._open) <= 5
        opened.append(graph.opened)
    assert opened[0] == "tabcdef" and list(map(len, opened[1:])) == [2, 1, 1, 1]


@pytest.mark.parametrize("whole", [True, False], ids=["whole graphs", "pieces of one"])
def test_only_pieces_of_one_graph_leave_their_memory_to_the_next(whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a whole graph frees would stay beside the next one: it may be as large as the budget."""
    graphs = [Layers("a"), Layers("b")] if whole else [Layers("ab")] * 2
    pieces = pieces_of(dict(zip("ab", graphs, strict=True)), 10)
    calls: list[str] = []
    for name in ("keep_freed_arrays", "map_large_arrays", "release_memory"):
        monkeypatch.setattr(cut_sessions, name, partial(calls.append, name))
    for step in "abab":
        with pieces.loaded(step):
            assert len(pieces._open) == 1
    pieces.close()
    assert calls == ([] if whole else ["keep_freed_arrays"] * 3 + ["map_large_arrays", "release_memory"])


def test_computations_that_hold_more_than_memory_go_one_after_another(tiny_artifact: Path, tmp_path: Path) -> None:
    deferring = Deferring(tiny_artifact, tmp_path, together=20)
    for tokens in (4, 5, 6):
        with pytest.raises(Deferred):
            deferring.ask(tokens, held=10)
    assert [waiting for _, waiting in deferring.settle()] == [2] * LAYERS + [1] * LAYERS


def test_what_goes_wrong_is_for_the_check_that_asked(tiny_artifact: Path, tmp_path: Path) -> None:
    deferring = Deferring(tiny_artifact, tmp_path)
    for tokens in (4, 9):  # the mask of the second is too short
        with pytest.raises(Deferred):
            deferring.ask(tokens)
    deferring.settle()
    assert deferring.ask(4).shape[1] == 4
    with pytest.raises(InputError, match="attention_mask"):
        deferring.ask(9)


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides run in parts, however much memory there is."""
    monkeypatch.setattr(verify, "must_stream", lambda *_: True)
    monkeypatch.setattr(Resources, "piece", lambda *_: SOME)


def test_a_verification_in_pieces_finds_what_a_whole_one_does(
    built: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    short = load_matrix().model_copy(update={"new_tokens": 6, "forced_tokens": 20})
    monkeypatch.setattr(verify, "matrix_for", lambda *_: short)
    monkeypatch.setattr(verify, "must_stream", lambda *_: True)
    reports = {}
    for name, size in (("whole", None), ("cut", SOME)):
        monkeypatch.setattr(Resources, "piece", lambda self, size=size: size)
        bench = verify.open_bench(built("tiny-int4"), "quick", cache=tmp_path / name)
        reports[name] = verify.run(bench, "quick", cases=["minimum-64x64"])
    assert reports["whole"].pieces is None
    assert (reports["cut"].pieces or {}).get(VISION_ENCODER, 0) > 1
    for outcome, expected in zip(reports["cut"].outcomes, reports["whole"].outcomes, strict=True):
        assert outcome.passed and expected.passed, outcome.message or expected.message
        assert outcome.measures == pytest.approx(expected.measures, rel=1e-3, abs=1e-5), outcome.id


def test_a_planted_fault_is_found_and_named_in_pieces(built: Callable[[str], Path], cut: None, tmp_path: Path) -> None:
    (fault,) = (fault for fault in FAULTS if fault.name == "corrupted-byte-sealed")
    failure = first_failure(fault, built(fault.recipe), tmp_path)
    assert failure is not None and failure.stage == "decoder"
    assert "decoder layer 2, mlp.down_proj" in (failure.diagnosis or "")


def test_memory_decides_whether_an_artifact_is_cut(
    built: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bench = verify.open_bench(built("tiny"), "quick", cache=tmp_path, cases=["text-only"])
    assert bench.resources is not None
    needs = bench.resources.needs
    assert needs.piece < needs.sessions / 4
    for left, is_cut in ((needs.sessions, False), (needs.sessions - 1, True)):
        monkeypatch.setattr(resources, "memory_left", lambda _, left=left: left + needs.comparing)
        size = bench.resources.piece()
        assert (size is not None) == is_cut
    assert size is not None and needs.piece < size
    assert needs.running + size + needs.waiting <= needs.opened
