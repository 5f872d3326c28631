"""What is asked about a prompt becomes one call of the model, and calls are grouped by what they hold in memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from parity_tests.harness.budget.split import within
from parity_tests.harness.sides.pytorch.calls import Call, Request, join
from parity_tests.harness.sides.pytorch.inputs import Inputs

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


def test_what_a_call_holds_grows_with_all_that_it_reads() -> None:
    vision = SimpleNamespace(deepstack_visual_indexes=[0, 1], hidden_size=32)
    config = SimpleNamespace(vision_config=vision, text_config=SimpleNamespace(hidden_size=64))
    sizes = [
        call.waiting_bytes(config)
        for call in (
            Call(Inputs.of_pictures(PIXELS, GRID)),
            Call(prompt(1), ("prompt",)),
            Call(prompt(1), ("prompt",), {("text",): TEXT}),
        )
    ]
    patches = 4 * 16 * 3 * 32
    assert sizes == [patches, patches + 4 * (3 * 4 * 64 + 9), patches + 4 * (8 * 4 * 64 + 64)]


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
