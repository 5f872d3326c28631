"""Computations in step: one at a time, each step prepared once, and none left behind when one fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from parity_tests.harness.sides.lockstep import reach, run_in_step, while_running

ORDER = {"a": 0, "b": 1, "c": 2}


class Recorder:
    """Computations that note where they are, and the steps as they are prepared."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.ready = ""
        self.running = 0

    @contextmanager
    def prepare(self, step: str) -> Iterator[None]:
        self.events.append(f"prepare {step}")
        self.ready = step
        yield
        self.ready = ""

    def walk(self, name: str, steps: Sequence[str], fail: str = "") -> Callable[[], str]:
        def compute() -> str:
            for step in steps:
                reach(step)
                self.running += 1
                assert self.running == 1 and self.ready == step
                self.events.append(f"{name} {step}")
                self.running -= 1
                if step == fail:
                    raise ValueError(f"{name} fails at {step}")
            return name

        return compute


def test_each_step_is_prepared_once_for_all_that_need_it() -> None:
    recorder = Recorder()
    walks = [recorder.walk("x", "abc"), recorder.walk("y", "ac"), recorder.walk("z", "b"), recorder.walk("none", "")]
    assert run_in_step(walks, ORDER, recorder.prepare) == ["x", "y", "z", "none"]
    assert recorder.events == ["prepare a", "x a", "y a", "prepare b", "x b", "z b", "prepare c", "x c", "y c"]


def test_a_step_that_comes_again_is_prepared_again() -> None:
    recorder = Recorder()
    assert run_in_step([recorder.walk("x", "abab"), recorder.walk("y", "b")], ORDER, recorder.prepare) == ["x", "y"]
    assert [event for event in recorder.events if event.startswith("prepare")] == [
        "prepare a", "prepare b", "prepare a", "prepare b",
    ]  # fmt: skip


def test_a_failure_is_raised_and_the_others_are_stopped() -> None:
    before = threading.active_count()
    recorder = Recorder()
    with pytest.raises(ValueError, match="y fails at b"):
        run_in_step([recorder.walk("x", "abc"), recorder.walk("y", "abc", fail="b")], ORDER, recorder.prepare)
    assert "x c" not in recorder.events and "prepare c" not in recorder.events
    assert threading.active_count() == before


def test_steps_are_reported_with_how_many_wait() -> None:
    recorder = Recorder()
    reported: list[tuple[str, int]] = []
    walks = [recorder.walk("x", "ab"), recorder.walk("y", "b")]
    run_in_step(walks, ORDER, recorder.prepare, lambda step, waiting: reported.append((step, waiting)))
    assert reported == [("a", 1), ("b", 2)]


def test_outside_of_a_computation_nothing_waits() -> None:
    assert not reach("a")


def test_a_change_is_in_effect_while_its_computation_runs() -> None:
    """Whatever the steps between: it is neither seen by the others nor by what prepares a step, and ends with it."""
    shared = {"value": "own"}
    seen: list[str] = []

    def change(name: str) -> Callable[[], Callable[[], None]]:
        def apply() -> Callable[[], None]:
            before, shared["value"] = shared["value"], name
            return lambda: shared.update(value=before)

        return apply

    def walk(name: str, fail: bool = False) -> Callable[[], None]:
        def compute() -> None:
            with while_running(change(name)), while_running(change(f"{name} inside")):
                for step in "ab":
                    reach(step)
                    assert shared["value"] == f"{name} inside"
            seen.append(shared["value"])
            reach("c")
            if fail:
                raise ValueError(name)

        return compute

    @contextmanager
    def prepare(step: str) -> Iterator[None]:
        seen.append(shared["value"])
        yield

    run_in_step([walk("x"), walk("y"), lambda: seen.append(shared["value"])], ORDER, prepare)
    assert set(seen) == {"own"} and len(seen) == 6
    with pytest.raises(ValueError, match="y"):
        run_in_step([walk("x"), walk("y", fail=True)], ORDER, prepare)
    assert shared["value"] == "own"
    with while_running(change("alone")):
        assert shared["value"] == "alone"
    assert shared["value"] == "own"
