"""Embedding models and rerankers in released runtimes: what the programs of a model card print is what ours returns."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qwen3vl_export.contract import EMBEDDING, RERANKER
from qwen3vl_export.packaging import RUNTIMES
from qwen3vl_export.promise import TRANSFORMERS_JS
from qwen3vl_export.publishing.snippets import SNIPPETS
from qwen3vl_export.runtime import Image, Qwen3VL

from ..harness.cases.picture_kinds import photograph
from .npm import node, node_modules
from .pictures import png

LOCAL_MODELS = """\
import { env } from '@huggingface/transformers';
env.allowRemoteModels = false;
env.localModelPath = process.env.MODELS;
"""
SECONDS = 120


def test_there_is_a_program_for_every_runtime_and_head() -> None:
    assert set(SNIPPETS) == {(name, head) for name, runtime in RUNTIMES.items() for head in runtime.heads}


@pytest.mark.parametrize("head", [EMBEDDING, RERANKER])
def test_transformers_js_computes_the_same(head: str, built: Callable[[str], Path], tmp_path: Path) -> None:
    artifact = built(f"tiny-{head}")
    picture = tmp_path / "cat.png"
    picture.write_bytes(png(photograph().resize((192, 128))))  # whole tokens: nothing is resized
    (tmp_path / "snippet.mjs").write_text(SNIPPETS[TRANSFORMERS_JS, head][1].format(repository=artifact.name), "utf-8")
    (tmp_path / "local.mjs").write_text(LOCAL_MODELS, "utf-8")
    (tmp_path / "node_modules").symlink_to(node_modules())
    command = [node(), "--import", "./local.mjs", "snippet.mjs"]
    environment = {**os.environ, "MODELS": str(artifact.parent)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert result.returncode == 0, result.stderr
    model = Qwen3VL.load(artifact)
    embed = head == EMBEDDING
    expected = model.embed([[Image(picture), "a cat"]])[0] if embed else model.rerank("a cat", [Image(picture)])[0]
    assert np.abs(np.array(json.loads(result.stdout)) - expected).max() < 1e-5
