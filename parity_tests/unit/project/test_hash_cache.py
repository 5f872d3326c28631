"""Hashes are cached for exactly the file that was hashed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from qwen3vl_export import artifact, hash_cache
from qwen3vl_export.artifact import open_artifact
from qwen3vl_export.errors import ArtifactError
from qwen3vl_export.hash_cache import FILE, HashCache, sha256_file


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose bytes were read; files count as settled at once."""
    names: list[str] = []

    def note_and_hash(path: Path) -> str:
        names.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr(hash_cache, "sha256_file", note_and_hash)
    monkeypatch.setattr(hash_cache, "SETTLED_NS", -1)
    return names


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    return path


def digest(path: Path, store: Path) -> str:
    """The hash as a new process would return it."""
    cache = HashCache(store)
    sha256 = cache.sha256(path)
    cache.save()
    return sha256


def write(path: Path) -> None:
    path.write_bytes(b"abd")


def write_and_set_back_the_time(path: Path) -> None:
    before = path.stat()
    path.write_bytes(b"abd")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path: Path) -> None:
    before = path.stat()
    replacement = path.with_name("other")
    replacement.write_bytes(b"abd")
    os.utime(replacement, ns=(before.st_atime_ns, before.st_mtime_ns))
    replacement.replace(path)


@pytest.mark.parametrize("change", [write, write_and_set_back_the_time, replace])
def test_an_untouched_file_is_read_once_and_a_touched_one_again(
    file: Path, tmp_path: Path, hashed: list[str], change: Any
) -> None:
    store = tmp_path / "cache" / FILE
    expected = hashlib.sha256(b"abc").hexdigest()
    assert [digest(file, store) for _ in range(3)] == [expected] * 3
    assert hashed == ["weights"]
    change(file)
    assert digest(file, store) == hashlib.sha256(b"abd").hexdigest()
    assert hashed == ["weights"] * 2


def test_a_file_just_written_is_not_remembered(file: Path, tmp_path: Path) -> None:
    store = tmp_path / FILE
    digest(file, store)
    assert not store.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', '{"a": [["x"], 2]}', "\ufffd"])
def test_a_corrupt_cache_costs_only_time(file: Path, tmp_path: Path, hashed: list[str], text: str) -> None:
    store = tmp_path / FILE
    store.write_text(text, "utf-8")
    assert digest(file, store) == digest(file, store) == hashlib.sha256(b"abc").hexdigest()
    assert hashed == ["weights"]


def test_no_place_to_write_is_no_error(file: Path, tmp_path: Path, hashed: list[str]) -> None:
    (tmp_path / "taken").write_text("a file, where a directory should be")
    assert digest(file, tmp_path / "taken" / FILE) == hashlib.sha256(b"abc").hexdigest()
    assert hashed == ["weights"]


def test_the_store_is_bounded(tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hash_cache, "MAX_ENTRIES", 2)
    store = tmp_path / FILE
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
        digest(tmp_path / name, store)
    assert [Path(name).name for name in json.loads(store.read_text())] == ["b", "c"]


def test_an_artifact_is_hashed_once_and_noticed_if_altered(
    tiny_artifact: Path, tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact, "HashCache", lambda: HashCache(tmp_path / FILE))
    copy = Path(shutil.copytree(tiny_artifact, tmp_path / "copy"))
    before = sorted(path.name for path in copy.rglob("*"))
    files = len(open_artifact(copy).manifest.files)
    assert len(hashed) == files
    open_artifact(copy)
    assert len(hashed) == files and sorted(path.name for path in copy.rglob("*")) == before
    data = bytearray((copy / "onnx" / "embeddings.onnx").read_bytes())
    data[-1] ^= 1
    (copy / "onnx" / "embeddings.onnx").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"embeddings\.onnx: was altered, its sha256 differs"):
        open_artifact(copy)
    assert len(hashed) == files + 1
