"""scripts/package_text_embedder.py: one graph from token ids to hidden states computes what `embed` does."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime as ort
import pytest

from qwen3vl_export.errors import ArtifactError
from qwen3vl_export.runtime import Qwen3VL
from qwen3vl_export.runtime.retrieval import embedding_conversation

from ...fixtures.paths import ROOT

TEXTS = ["a red circle", "a blue ring in the top left and a green cross in the center"]


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("package_text_embedder")


def test_a_batch_of_texts_gives_the_vectors_of_embed(
    package: ModuleType, built: Callable[[str], Path], tmp_path: Path
) -> None:
    artifact, out = built("tiny-embedding"), tmp_path / "package"
    package.write_package(artifact, out)
    model = Qwen3VL.load(artifact)
    prepared = model.prepare([embedding_conversation(text, None, model.artifact.manifest.facts) for text in TEXTS])
    session = ort.InferenceSession(out / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    feed = {"input_ids": prepared.input_ids, "attention_mask": prepared.attention_mask}
    (hidden,) = session.run(None, feed)
    assert hidden.shape == (*prepared.input_ids.shape, model.artifact.manifest.facts.hidden_size)
    last = hidden[:, -1] / np.linalg.norm(hidden[:, -1], axis=1, keepdims=True)
    assert np.abs(last - model.embed(TEXTS)).max() < 1e-6
    assert json.loads((out / "tokenizer_config.json").read_text("utf-8"))["padding_side"] == "left"
    for module in json.loads((out / "modules.json").read_text("utf-8")):
        assert (out / module["path"]).is_dir()


def test_another_head_is_refused(package: ModuleType, tiny_artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no embedding model"):
        package.write_package(tiny_artifact, tmp_path / "package")
