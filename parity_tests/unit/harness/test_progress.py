"""Progress of a verification: what is done next, the share that is done, and the time left."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from parity_tests.harness.budget.cost import Seconds
from parity_tests.harness.progress import LINE_SECONDS, Lines, Tracker

CASES = ("first", "second")
MODULES = ("model.visual.blocks.0", "model.language_model.layers.0", "model.language_model.layers.1", "lm_head")


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def estimated(streamed: bool) -> Any:
    """Two checks of 10 s each: 4 s of the artifact, 5 s of PyTorch, 1 s of comparing."""
    model = SimpleNamespace(
        blocks=1, block_parameters=25, layers=2, layer_parameters=100, hidden=10, output=10
    )  # a patch weighs a quarter of a token: 100, 200 and 100 of 400
    checks = {f"decoder[{name}]": Seconds(artifact=4.0, pytorch=5.0, comparing=1.0) for name in CASES}
    seconds = sum(checks.values(), Seconds())
    resources = SimpleNamespace(model=model)
    return SimpleNamespace(checks=checks, seconds=seconds, streamed=streamed, passes=1, resources=resources)


def checks() -> list[Any]:
    return [SimpleNamespace(id=f"decoder[{name}]", name=name, stage="decoder") for name in CASES]


Shown = list[tuple[str, float, float]]


@pytest.fixture
def start() -> Callable[..., tuple[Tracker, Shown, Clock]]:
    def start_tracker(streamed: bool, done: tuple[str, ...] = ()) -> tuple[Tracker, Shown, Clock]:
        shown: Shown = []
        clock = Clock()
        return Tracker(estimated(streamed), lambda *values: shown.append(values), done, clock), shown, clock

    return start_tracker


def test_case_and_stage_are_shown_with_the_share_done(start: Callable[..., tuple[Tracker, Shown, Clock]]) -> None:
    tracker, shown, clock = start(streamed=False)
    for _ in tracker.track(checks()):
        clock.now += 10
    assert [(text, share) for text, share, _ in shown] == [("first: decoder", 0.0), ("second: decoder", 0.5)]
    assert tracker.done == tracker.total == 20 and tracker.seconds_left == 0


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_time_left_follows_the_clock(start: Callable[..., tuple[Tracker, Shown, Clock]], factor: float) -> None:
    """A machine that takes three times as long as estimated is expected to go on like that, the more the longer."""
    tracker, shown, clock = start(streamed=False)
    for _ in tracker.track(checks()):
        clock.now += 10 * factor
    first, second = (left for _, _, left in shown)
    assert first == 20
    assert second == pytest.approx(10 * (10 * factor + 10) / (10 + 10))


def test_a_streamed_run_counts_the_artifact_then_modules_then_comparing(
    start: Callable[..., tuple[Tracker, Shown, Clock]],
) -> None:
    tracker, shown, _ = start(streamed=True)
    assert len(list(tracker.track(checks()))) == 2
    assert tracker.done == 8
    for module, done in zip(MODULES, (10.5, 13.0, 15.5, 18.0), strict=True):
        tracker.report(module, 2)
        assert tracker.done == pytest.approx(done)
    assert shown[-1][0] == "PyTorch: lm_head, 2 calls"
    assert len(list(tracker.track(checks()))) == 2
    assert tracker.done == 20


def test_pieces_of_the_artifact_are_shown_as_such(start: Callable[..., tuple[Tracker, Shown, Clock]]) -> None:
    tracker, shown, _ = start(streamed=True)
    tracker.report("decoder_model_merged (1), piece 2 of 5", 3)
    assert shown == [("artifact: decoder_model_merged (1), piece 2 of 5, 3 calls", 0.0, 20)] and tracker.done == 0


def test_more_passes_than_expected_do_not_exceed_the_whole(
    start: Callable[..., tuple[Tracker, Shown, Clock]],
) -> None:
    tracker, shown, _ = start(streamed=True)
    for _ in range(5):
        for module in MODULES:
            tracker.report(module, 1)
    assert max(share for _, share, _ in shown) <= 1 and min(left for _, _, left in shown) >= 0


def test_what_an_interrupted_run_did_is_done(start: Callable[..., tuple[Tracker, Shown, Clock]]) -> None:
    tracker, _, _ = start(streamed=False, done=("decoder[first]", "decoder[of another plan]"))
    assert tracker.done == 10


def test_lines_are_printed_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = Lines(clock)
    for seconds in (0.0, LINE_SECONDS - 1, 1.0, 1.0, LINE_SECONDS):
        clock.now += seconds
        lines(f"at {clock.now:.0f}", 0.25, 93)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"25%, about 1 min 33 s left; at {at:.0f}" for at in (100, 115, 131)]
