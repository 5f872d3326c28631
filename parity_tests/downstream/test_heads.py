"""Embedding models and rerankers in released runtimes: what the programs of a model card print is what ours returns."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3vl_export.contract import EMBEDDING, RERANKER
from qwen3vl_export.packaging import RUNTIMES
from qwen3vl_export.promise import TRANSFORMERS_JS
from qwen3vl_export.publishing.snippets import SNIPPETS
from qwen3vl_export.runtime import Image, Qwen3VL
from qwen3vl_export.runtime.retrieval import embedding_conversation

from ..harness.cases.picture_kinds import photograph
from .npm import node, node_modules
from .pictures import png

LOCAL_MODELS = """\
import { env } from '@huggingface/transformers';
env.allowRemoteModels = false;
env.localModelPath = process.env.MODELS;
"""
FEATURES = """\
import { pipeline } from '@huggingface/transformers';
const extract = await pipeline('feature-extraction', 'tiny-embedding');
const features = await extract(JSON.parse(process.argv[2]), { pooling: 'last_token', normalize: true });
console.log(JSON.stringify(features.tolist()));
"""
SECONDS = 120


def test_there_is_a_program_for_every_runtime_and_head() -> None:
    assert set(SNIPPETS) == {(name, head) for name, runtime in RUNTIMES.items() for head in runtime.heads}


@pytest.mark.parametrize("head", [EMBEDDING, RERANKER])
def test_transformers_js_computes_the_same(head: str, built: Callable[[str], Path], tmp_path: Path) -> None:
    artifact = built(f"tiny-{head}")
    picture = tmp_path / "cat.png"
    picture.write_bytes(png(photograph().resize((192, 128))))  # whole tokens: nothing is resized
    values = run(SNIPPETS[TRANSFORMERS_JS, head][1].format(repository=artifact.name), artifact, tmp_path)
    model = Qwen3VL.load(artifact)
    embed = head == EMBEDDING
    expected = model.embed([[Image(picture), "a cat"]])[0] if embed else model.rerank("a cat", [Image(picture)])[0]
    assert np.abs(np.array(values) - expected).max() < 1e-5


def test_its_feature_extraction_embeds_texts_of_any_length(built: Callable[[str], Path], tmp_path: Path) -> None:
    """The pipeline tokenizes and pads by itself; prompts are given as they are rendered."""
    model = Qwen3VL.load(built("tiny-embedding"))
    texts = ["a red circle", "a blue ring in the top left and a green cross in the center"]
    prompts = model.prepare([embedding_conversation(text, None, model.facts) for text in texts]).texts
    values = run(FEATURES, model.artifact.root, tmp_path, json.dumps(prompts))
    assert np.abs(np.array(values) - model.embed(texts)).max() < 1e-5


def run(program: str, artifact: Path, directory: Path, *arguments: str) -> Any:
    """The JSON that a program prints which finds the artifact under its name."""
    (directory / "program.mjs").write_text(program, "utf-8")
    (directory / "local.mjs").write_text(LOCAL_MODELS, "utf-8")
    (directory / "node_modules").symlink_to(node_modules())
    command = [node(), "--import", "./local.mjs", "program.mjs", *arguments]
    environment = {**os.environ, "MODELS": str(artifact.parent)}
    result = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)
