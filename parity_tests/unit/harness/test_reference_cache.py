"""PyTorch's results on disk: found again only when everything they depend on is the same, and never half a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from parity_tests.harness.sides.pytorch import reference_cache
from parity_tests.harness.sides.pytorch.inputs import Inputs
from parity_tests.harness.sides.pytorch.reference import Greedy, Reference
from parity_tests.harness.sides.pytorch.reference_cache import Store, default_directory, scope_of
from qwen3vl_export.hash_cache import DIRECTORY_VARIABLE

from ...fixtures.paths import TINY

KEY = ("generate", "abc", 4)
VALUE = Greedy(np.arange(4)[None], np.ones((1, 4, 3), np.float32))


def test_what_was_put_is_found_again(tmp_path: Path) -> None:
    Store(tmp_path, "scope").put(KEY, VALUE)
    result = Store(tmp_path, "scope").get(KEY, Greedy)
    assert isinstance(result, Greedy)
    assert (result.ids == VALUE.ids).all()
    assert result.logits.dtype == np.float32
    Store(tmp_path, "scope").put(("vision", "x"), VALUE.logits)
    assert (Store(tmp_path, "scope").get(("vision", "x"), np.ndarray) == VALUE.logits).all()


def test_another_scope_or_key_finds_nothing(tmp_path: Path) -> None:
    Store(tmp_path, "scope").put(KEY, VALUE)
    assert Store(tmp_path, "other").get(KEY, Greedy) is None
    assert Store(tmp_path, "scope").get((*KEY[:2], 5), Greedy) is None


def test_the_scope_names_the_checkpoint() -> None:
    files = {"model.safetensors": "0" * 64}
    before = scope_of(files)
    assert scope_of(dict(files)) == before
    assert scope_of({"model.safetensors": "1" * 64}) != before


@pytest.mark.parametrize("package", ["torch", "transformers", "numpy"])
def test_another_release_of_what_computes_is_another_scope(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    before, installed = scope_of({}), reference_cache.version
    monkeypatch.setattr(reference_cache, "version", lambda name: "99.0" if name == package else installed(name))
    assert scope_of({}) != before


def test_a_damaged_file_is_as_good_as_absent(tmp_path: Path) -> None:
    store = Store(tmp_path, "scope")
    store.put(KEY, VALUE)
    path = store.path(KEY)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", bytes([*whole[:170], whole[170] ^ 1, *whole[171:]])):
        path.write_bytes(damaged)
        assert store.get(KEY, Greedy) is None
    store.put(KEY, VALUE)
    assert store.get(KEY, Greedy) is not None


def test_the_longest_unused_results_make_room(tmp_path: Path) -> None:
    small = Store(tmp_path, "scope", budget=20_000)
    for index in range(6):
        small.put(("vision", index), np.zeros(1000))  # 8 kB each
    stored = [small.get(("vision", index), np.ndarray) is not None for index in range(6)]
    assert sum(stored) == 2
    assert stored[-1]


def test_room_is_made_of_results_alone(tmp_path: Path) -> None:
    """The directory is the user's choice, and may hold arrays of theirs."""
    (tmp_path / "ab").mkdir()
    np.savez(tmp_path / "ab" / "mine.npz", np.zeros(10_000))
    Store(tmp_path, "scope", budget=0).put(KEY, VALUE)
    assert [path.name for path in tmp_path.rglob("*.npz")] == ["mine.npz"]


def test_a_disk_that_takes_nothing_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file", "scope")  # not a directory
    store.put(KEY, VALUE)
    assert store.get(KEY, Greedy) is None


def test_the_directory_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path))
    assert default_directory() == tmp_path / "reference"
    monkeypatch.delenv(DIRECTORY_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_directory() == tmp_path / "qwen3vl-export" / "reference"


def test_a_second_reference_computes_nothing(tmp_path: Path) -> None:
    ids = np.array([[1, 2, 3]])
    inputs = Inputs(ids, np.ones_like(ids), np.zeros((0, 1536), np.float32), np.zeros((0, 3), np.int64))
    first, second = (Reference(TINY, Store(tmp_path, "scope")) for _ in range(2))
    computed = first.prefill(inputs)
    recalled = second.prefill(inputs)
    assert (computed.logits == recalled.logits).all()
    assert [(side.results.computed, side.results.from_disk) for side in (first, second)] == [(1, 0), (0, 1)]
    assert "model" not in vars(second)  # the checkpoint was not even loaded
    assert second.seconds == 0


def test_features_are_shared_where_the_tower_is_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels, grid = rng.uniform(-1, 1, (16, 1536)).astype(np.float32), np.array([[1, 4, 4]])
    first = Reference(TINY, Store(tmp_path, "first"))
    config = first.model.config
    ids = np.array([[config.vision_start_token_id, *[config.image_token_id] * 4, config.vision_end_token_id, 7]])
    inputs = Inputs(ids, np.ones_like(ids), pixels, grid)
    features = first.vision(pixels, grid)
    for tower, computed in ((first, 1), (None, 2)):
        second = Reference(TINY, Store(tmp_path, f"second {computed}"), tower=tower)
        assert (second.prefill(inputs).image_features == features).all()
        assert (second.results.computed, second.results.from_disk) == (computed, 0)
