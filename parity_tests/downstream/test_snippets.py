"""The snippets of a published model card, extracted and run unchanged, against a Hub on this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen3vl_export.packaging import RUNTIMES
from qwen3vl_export.promise import GENAI, ONNXRUNTIME, TRANSFORMERS_JS
from qwen3vl_export.publishing.publication import prepare

from ..fixtures.hub_server import Hub, running_hub
from ..fixtures.paths import ROOT
from ..fixtures.proven import prove
from ..harness.cases.picture_kinds import photograph
from .npm import node, node_modules
from .pictures import png

REPOSITORY = "me/tiny"
SNIPPET = re.compile(r"^### (?P<runtime>\S+) .*?\n\n```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
LOCAL_HUB = """\
import { env } from '@huggingface/transformers';
env.remoteHost = process.env.HF_ENDPOINT;
env.cacheDir = process.env.HF_HOME;
"""
SECONDS = 120


@pytest.fixture(scope="module")
def proven(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prove(tiny_artifact, tmp_path_factory.mktemp("proven") / "tiny")


@pytest.fixture(scope="module")
def hub(proven: Path) -> Iterator[Hub]:
    """A Hub with the published artifact."""
    publication = prepare(proven, REPOSITORY)
    files = {name: path.read_bytes() for name, path in publication.files.items()}
    with running_hub() as server:
        server.repositories[REPOSITORY] = {**files, **publication.generated}
        yield server


@pytest.fixture(scope="module")
def snippets(hub: Hub) -> dict[str, str]:
    card = hub.repositories[REPOSITORY]["README.md"].decode()
    return {match["runtime"]: match["code"] for match in SNIPPET.finditer(card)}


def run(command: list[str], folder: Path, hub: Hub) -> str:
    """What the snippet prints, asked about a picture of a cat."""
    (folder / "cat.png").write_bytes(png(photograph()))
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    local = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}
    environment = {**os.environ, **quiet, **local}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_there_is_one_for_each_runtime(snippets: dict[str, str]) -> None:
    assert set(snippets) == set(RUNTIMES)


@pytest.mark.parametrize("runtime", [ONNXRUNTIME, GENAI])
def test_python(runtime: str, snippets: dict[str, str], hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "snippet.py").write_text(snippets[runtime], "utf-8")
    assert run([sys.executable, "snippet.py"], tmp_path, hub) == "a cat"


def test_javascript(snippets: dict[str, str], hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "snippet.mjs").write_text(snippets[TRANSFORMERS_JS], "utf-8")
    (tmp_path / "local_hub.mjs").write_text(LOCAL_HUB, "utf-8")
    (tmp_path / "node_modules").symlink_to(node_modules())
    assert run([node(), "--import", "./local_hub.mjs", "snippet.mjs"], tmp_path, hub) == "a cat"
