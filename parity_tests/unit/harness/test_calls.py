"""What is asked about a prompt becomes one call of the model, and calls are grouped by what they hold in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from parity_tests.harness.budget.activations import need_of
from parity_tests.harness.budget.sizes import Call as Size
from parity_tests.harness.budget.sizes import ModelSizes
from parity_tests.harness.budget.split import within
from parity_tests.harness.sides.pytorch.calls import Call, Request, join
from parity_tests.harness.sides.pytorch.inputs import Inputs
from parity_tests.harness.sides.pytorch.torch_model import read_config

from ...fixtures.paths import TINY

PIXELS, GRID = np.zeros((16, 12), np.float32), np.array([[1, 4, 4]])
TEXT = np.arange(5)[None]


def prompt(token: int, pixels: Any = PIXELS) -> Inputs:
    ids = np.full((1, 3), token)
    return Inputs(ids, np.ones_like(ids), pixels, GRID)


def request(inputs: Inputs | None, ids: Any = None) -> Request:
    return Request(lambda: None, inputs, ids)


def test_questions_about_a_prompt_are_one_call() -> None:
    first, second = prompt(1), prompt(2)
    alone = Inputs.of_pictures(PIXELS + 1, GRID)
    calls = join(
        {
            ("vision", "of the first"): request(Inputs.of_pictures(PIXELS, GRID)),
            ("text", "a"): request(first, TEXT),
            ("text", "b"): request(first, TEXT[:, :2]),
            ("other",): request(None),
            ("prompt", "second"): request(second),
            ("vision", "alone"): request(alone),
            ("prompt", "first"): request(first),
        }
    )
    assert [(call.inputs, call.prompt, list(call.texts)) for call in calls] == [
        (first, ("prompt", "first"), [("text", "a"), ("text", "b")]),
        (second, ("prompt", "second"), []),
        (alone, None, []),
    ]
    assert [call.reads for call in calls] == [True, True, False]


def test_what_a_call_holds_is_what_was_estimated_for_its_size() -> None:
    model, text = ModelSizes.of(read_config(TINY)[0]), np.zeros((1, 500), np.int64)
    calls = {
        Size(frames=(16,)): Call(Inputs.of_pictures(PIXELS, GRID)),
        Size(1, 3, frames=(16,)): Call(prompt(1), ("prompt",)),
        Size(1, 503, frames=(16,)): Call(prompt(1), ("prompt",), {("text",): request(prompt(1), text)}),
        Size(1, 1003): Call(prompt(1, PIXELS[:0]), None, {("a",): request(None, text), ("b",): request(None, text)}),
    }
    for size, call in calls.items():
        assert call.waiting_bytes(model) == need_of(model, size).held
    held = [call.waiting_bytes(model) for call in calls.values()]
    assert held[0] == held[1] < held[2] < held[3]  # a short prompt holds less than its picture's patches


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [
        ([3, 3, 3], [[0, 1], [2]]),
        ([9, 1, 9], [[0], [1], [2]]),
        ([6], [[0]]),
        ([0, 0, 6, 0], [[0, 1, 2, 3]]),
        ([], []),
    ],
)
def test_groups_are_as_large_as_memory_allows(sizes: list[int], groups: list[list[int]]) -> None:
    assert list(within(enumerate(sizes), 6)) == groups
