"""`embed` and `rerank` on the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from parity_tests.fixtures.commands import assert_one_line, invoke
from parity_tests.harness.cases.picture_kinds import PHOTOGRAPH
from qwen3vl_export.errors import InputError
from qwen3vl_export.runtime import Image, Qwen3VL


@pytest.fixture(scope="module")
def embedder(built: Callable[[str], Path]) -> Path:
    return built("tiny-embedding")


@pytest.fixture(scope="module")
def vectors(embedder: Path) -> np.ndarray:
    return Qwen3VL.load(embedder).embed(["a cat", Image(PHOTOGRAPH), {"text": "a dog", "image": str(PHOTOGRAPH)}])


def test_embed_prints_json_lines(embedder: Path, vectors: np.ndarray) -> None:
    result = invoke("embed", embedder, "--text", "a cat", "--image", PHOTOGRAPH)
    assert (result.exit_code, result.stderr) == (0, "")
    assert np.array_equal(np.array([json.loads(line) for line in result.stdout.splitlines()], np.float32), vectors[:2])


@pytest.mark.parametrize("name", ["vectors.npy", "vectors.jsonl"])
def test_embed_writes_a_file(embedder: Path, vectors: np.ndarray, tmp_path: Path, name: str) -> None:
    lines = tmp_path / "inputs.jsonl"
    lines.write_text(json.dumps({"text": "a dog", "image": str(PHOTOGRAPH)}) + "\n\n", "utf-8")
    out = tmp_path / name
    result = invoke("embed", embedder, "--inputs", lines, "--text", "a cat", "--out", out, "--dimensions", 32)
    assert (result.exit_code, result.stdout) == (0, "") and result.stderr == f"{out}: 2 vectors of 32 dimensions\n"
    text = out.read_text("utf-8") if out.suffix == ".jsonl" else ""
    stored = np.load(out) if not text else np.array([json.loads(line) for line in text.splitlines()], np.float32)
    leading = vectors[[2, 0], :32]
    assert stored.dtype == np.float32
    assert np.abs(stored - leading / np.linalg.norm(leading, axis=1, keepdims=True)).max() < 1e-6


def test_embed_reads_standard_input(embedder: Path, vectors: np.ndarray) -> None:
    result = invoke("embed", embedder, "--inputs", "-", typed='{"text": "a cat"}\n')
    assert np.array_equal(np.array(json.loads(result.stdout), np.float32), vectors[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "there is no input. Add --text, --image, --video, or --inputs FILE"),
        (("--text", "a", "--out", "vectors.txt"), "vectors.txt: neither .npy nor .jsonl"),
        (("--text", "a", "--out", "no/such/place.npy"), "place.npy: cannot be written"),
        (("--text", "a", "--dimensions", 129), "dimensions is 129. Use 1 to 128"),
        (("--inputs", "nowhere.jsonl"), "nowhere.jsonl: cannot be read"),
        (("--image", "nowhere.png"), "nowhere.png: no such image file"),
    ],
)
def test_embed_reports_what_is_wrong(embedder: Path, options: tuple[str, ...], message: str) -> None:
    assert_one_line(invoke("embed", embedder, *options), message)


@pytest.mark.parametrize(("line", "message"), [("[", "line 2 is not JSON"), ("[1]", "line 2 is not an object")])
def test_lines_that_are_no_objects_are_named(embedder: Path, line: str, message: str) -> None:
    result = invoke("embed", embedder, "--inputs", "-", typed=f'{{"text": "a"}}\n{line}\n')
    assert_one_line(result, f"standard input: {message}")


def test_rerank_prints_the_best_first(built: Callable[[str], Path]) -> None:
    artifact = built("tiny-reranker")
    documents = ["a cat", "a dog", "three", Image(PHOTOGRAPH)]
    scores = Qwen3VL.load(artifact).rerank("a cat", documents)
    options = [option for text in documents[:3] for option in ("--text", text)]
    result = invoke("rerank", artifact, "--query", "a cat", *options, "--image", PHOTOGRAPH)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["index"] for line in lines] == np.argsort(-scores).tolist()
    assert [line["score"] for line in lines] == sorted(map(float, scores), reverse=True)
    assert {line["index"]: line["document"] for line in lines} == dict(enumerate([*documents[:3], str(PHOTOGRAPH)]))
    assert_one_line(invoke("rerank", artifact, "--text", "a"), "there is no query")


def test_models_with_another_head_say_what_they_are_for(built: Callable[[str], Path], embedder: Path) -> None:
    said = "is a model for embeddings, by embed()"
    assert_one_line(invoke("run", embedder, "--prompt", "Hi"), said)
    assert_one_line(invoke("chat", embedder), said)
    assert_one_line(invoke("rerank", embedder, "--query", "a", "--text", "b"), said)
    assert_one_line(invoke("embed", built("tiny-reranker"), "--text", "a"), "is a model for scores, by rerank()")
    model = Qwen3VL.load(embedder)
    for call in (lambda: model.generate_batch(["Hi"]), lambda: list(model.generate_steps(model.prepare([])))):
        with pytest.raises(InputError):
            call()
