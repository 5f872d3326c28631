"""Checkpoints of the Hub: what is downloaded, and what the cache is good for without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from parity_tests.fixtures.hub_server import Hub, running_hub
from parity_tests.fixtures.paths import ROOT

SCRIPT = """
import sys
from qwen3vl_export.errors import CheckpointError
from qwen3vl_export.hub import download
try:
    print(*download("org/name", sys.argv[1], ["*.json", "*.safetensors"], sys.argv[2:]), sep="|")
except CheckpointError as error:
    print(error)
"""
Download = Callable[..., list[str]]


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A repository as a trainer leaves it, with the checkpoints of its run in folders."""
    with running_hub() as server:
        server.repositories["org/name"] = {
            "config.json": b"{}",
            "model.safetensors": b"weights",
            "README.md": b"---\nlicense: mit\n---\n",
            "checkpoint-500/model.safetensors": b"older weights",
            "checkpoint-500/config.json": b"{}",
            "onnx/config.json": b"{}",
        }
        yield server


@pytest.fixture
def download(hub: Hub, tmp_path: Path) -> Download:
    """`download` in a process that knows only this Hub, for its settings are read when it is imported."""

    def call(revision: str, *optional: str, **variables: str) -> list[str]:
        plain = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        home = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", SCRIPT, revision, *optional]
        environment = {**os.environ, **plain, **home, **variables}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\n") == 1
        return done.stdout.strip().split("|")

    return call


def test_the_top_of_a_repository_is_downloaded_and_found_again_offline(hub: Hub, download: Download) -> None:
    root, commit = download("main", "README.md", "LICENSE*")
    files = {path.relative_to(root).as_posix() for path in Path(root).rglob("*") if path.is_file()}
    assert files == {"config.json", "model.safetensors", "README.md"}
    assert commit == hub.sha("org/name")
    hub.requests.clear()
    for revision in ("main", commit):
        assert download(revision, "README.md", HF_HUB_OFFLINE="1") == [root, commit]
    assert hub.requests == []
    (unreachable,) = download("main", HF_ENDPOINT="http://127.0.0.1:9")
    assert "org/name: the Hugging Face Hub cannot be reached" in unreachable
    assert "Use the copy in the cache: HF_HUB_OFFLINE=1." in unreachable and "--checkpoint DIR" in unreachable


def test_a_cache_without_the_optional_files_will_do_offline(download: Download) -> None:
    root, commit = download("main")
    assert not (Path(root) / "README.md").exists()
    assert download("main", "README.md", HF_HUB_OFFLINE="1") == [root, commit]


def test_offline_without_a_cache_is_one_line(download: Download) -> None:
    (line,) = download("main", HF_HUB_OFFLINE="1")
    assert line.startswith("org/name: revision main is not in the cache, and HF_HUB_OFFLINE is set. Unset it.")
    assert "Use the copy" not in download("main", HF_ENDPOINT="http://127.0.0.1:9")[0]
