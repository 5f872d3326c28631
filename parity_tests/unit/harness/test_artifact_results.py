"""Results of an artifact are computed once, wherever they are kept, and memory is bounded."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from parity_tests.harness.sides.artifact import artifact_results
from parity_tests.harness.sides.artifact.artifact_results import WORK, ArtifactResults, ask_all, open_store
from parity_tests.harness.sides.pytorch.reference import Greedy
from parity_tests.harness.sides.pytorch.results import Deferred
from qwen3vl_export.runtime.arrays import Floats

GREEDY = Greedy(np.arange(6).reshape(2, 3), np.ones((2, 3, 4), np.float32))


def counted() -> tuple[list[int], Callable[[], Floats]]:
    """A computation, and how often it was carried out."""
    calls: list[int] = []

    def compute() -> Floats:
        calls.append(1)
        return np.full(100, len(calls), np.float32)

    return calls, compute


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize(("shared", "keep_all", "times"), [(True, False, 1), (False, True, 1), (False, False, 2)])
def test_what_several_checks_or_rounds_need_is_computed_once(
    on_disk: bool, shared: bool, keep_all: bool, times: int, tmp_path: Path
) -> None:
    results = ArtifactResults(open_store(tmp_path, "x") if on_disk else None, keep_all)
    calls, compute = counted()
    values = [results.recall(("features", "a"), np.ndarray, compute, shared) for _ in range(2)]
    assert len(calls) == results.computed == times
    assert (values[0] == values[1]).all() == (times == 1)


def test_results_on_disk_outlive_memory_and_process(tmp_path: Path) -> None:
    calls, compute = counted()
    for _ in range(2):
        results = ArtifactResults(open_store(tmp_path, "x"))
        assert results.recall(("features",), np.ndarray, compute, shared=True).tolist() == [1.0] * 100
        greedy = results.recall(("generated",), Greedy, lambda: GREEDY, shared=True)
        np.testing.assert_array_equal(greedy.ids, GREEDY.ids)
        results.forget()
        assert results.recall(("features",), np.ndarray, compute, shared=True).tolist() == [1.0] * 100
    assert len(calls) == 1
    assert ArtifactResults(open_store(tmp_path, "another")).recall(("features",), np.ndarray, compute, True)[0] == 2


def test_a_damaged_result_is_computed_again(tmp_path: Path) -> None:
    calls, compute = counted()
    store = open_store(tmp_path, "x")
    ArtifactResults(store).recall(("features",), np.ndarray, compute, shared=True)
    path = store.path(("features",))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    ArtifactResults(store).recall(("features",), np.ndarray, compute, shared=True)
    assert len(calls) == 2


def test_memory_holds_the_latest_results_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact_results, "REMEMBERED", 1000)
    results = ArtifactResults()
    calls, compute = counted()
    for name in ("a", "b", "a", "c", "a", "b"):  # 400 bytes each: with the third, the least recently used one goes
        results.recall((name,), np.ndarray, compute, shared=True)
    assert len(calls) == 4


def test_temporary_results_leave_nothing_behind(tmp_path: Path) -> None:
    results = ArtifactResults.temporary(tmp_path, "x", keep_all=True)
    results.recall(("a",), np.ndarray, counted()[1])
    assert list((tmp_path / WORK).rglob("*.npz"))
    del results
    gc.collect()
    assert not list((tmp_path / WORK).iterdir())


def test_all_are_asked_for_before_any_is_waited_for() -> None:
    asked = []

    def ask(name: str) -> str:
        asked.append(name)
        if name == "b":
            raise Deferred
        return name

    with pytest.raises(Deferred):
        ask_all([lambda name=name: ask(name) for name in "abc"])  # type: ignore[misc]
    assert asked == ["a", "b", "c"]
    assert ask_all([lambda: 1, lambda: 2]) == [1, 2]
