"""Prompt lookup: what is drafted, and that drafts cost next to nothing where they are wrong."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator

import numpy as np
import pytest

from qwen3vl_export.runtime.speculation import (
    CREDIT,
    EIGHT_BITS,
    FLOAT,
    LONGEST_DRAFT,
    MOST_LOSS,
    UNPACKED,
    Cost,
    PromptLookup,
)

RNG = np.random.default_rng(83)
COSTS = (FLOAT, EIGHT_BITS, UNPACKED)


def look_up(prompt: list[int], barred: Collection[int] = (), cost: Cost = EIGHT_BITS) -> PromptLookup:
    return PromptLookup(prompt, barred, cost)


def drafts_of(lookup: PromptLookup, tokens: list[int]) -> Iterator[tuple[int, int]]:
    """Generate tokens: of each call how many there were before it, and how many it drafts."""
    for index, token in enumerate(tokens, 1):
        if not lookup.push(token):
            yield index, len(lookup.draft(len(tokens) - index))


def time_of(prompt: list[int], tokens: list[int], cost: Cost) -> float:
    """In times of a call with one token."""
    return sum(1 + cost.of(drafted) for _, drafted in drafts_of(look_up(prompt, cost=cost), tokens))


@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_a_quotation_of_the_prompt_is_read_in_long_calls(cost: Cost) -> None:
    text = RNG.integers(0, 1000, 400).tolist()
    drafts = [drafted for _, drafted in drafts_of(look_up(text, cost=cost), text[100:300])]
    assert len(drafts) < 200 / 6
    assert len(drafts) + sum(drafts) in (200, 201)  # all that was drafted was right


def test_every_draft_is_what_followed_the_same_tokens() -> None:
    text = RNG.integers(0, 5, 600).tolist()
    seen: list[int] = []
    lookup = look_up([])
    drafted = 0
    for token in text + text:
        lookup.push(token)
        seen.append(token)
        draft = lookup.draft(99)
        assert len(draft) <= LONGEST_DRAFT
        assert any((seen + draft)[start : start + len(draft)] == draft for start in range(len(seen)))
        drafted += len(draft)
    assert drafted > 0


@pytest.mark.parametrize("period", [1, 2, 3, 7])
def test_a_repetition_is_drafted_beyond_its_period(period: int) -> None:
    drafts = [drafted for _, drafted in drafts_of(look_up([]), [*range(period)] * (200 // period))]
    assert max(drafts) == LONGEST_DRAFT and len(drafts) < 50


@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_rows_of_one_form_are_drafted_across_what_differs(cost: Cost) -> None:
    """A table: its rows differ in a value of three tokens that no n-gram predicts, and the form goes on behind it."""
    form = list(range(100, 112))
    table = [token for _ in range(40) for token in (*form[:6], *RNG.integers(0, 90, 3).tolist(), *form[6:])]
    assert time_of([], table, cost) < len(table) / 1.4


@pytest.mark.parametrize(
    ("barred", "limit", "draft"),
    [
        (set(), 99, [60, 61, 62, 63]),
        ({62}, 99, [60, 61]),
        ({60}, 99, []),
        (set(), 2, [60, 61]),
        (set(), 0, []),
        (set(), -1, []),
    ],
)
def test_a_draft_ends_at_its_limit_and_before_barred_tokens(barred: set[int], limit: int, draft: list[int]) -> None:
    text = list(range(50, 90))
    lookup = look_up([*text, *text[:2]], barred)
    for token in text[2:10]:
        lookup.push(token)
    assert lookup.draft(limit) == draft


@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_where_nothing_is_predicted_nothing_is_drafted(cost: Cost) -> None:
    """Neither in new text nor, soon, where n-grams recur and always go on in another way."""
    assert time_of([], list(range(2000)), cost) == 2000
    lookup = look_up([], cost=cost)
    for index, token in enumerate(token for number in range(500) for token in (7, 8, 1000 + number)):
        lookup.push(token)
        assert token != 8 or index < 60 or not lookup.draft(99)


@pytest.mark.parametrize("alphabet", [2, 3, 10, 200])
@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_drafts_that_are_always_wrong_cost_two_percent_and_a_call(cost: Cost, alphabet: int) -> None:
    """An enemy who knows every draft: it is right while nothing is drafted and wrong whenever something is."""
    lookup, spent, drafts = look_up([], cost=cost), 0.0, 0
    for number in range(1, 3000):
        draft = lookup.draft(99)
        drafts += bool(draft)
        spent += 1 + cost.of(len(draft))
        assert spent <= number * (1 + MOST_LOSS) + CREDIT
        assert not lookup.push(draft[0] + 1 if draft else number % alphabet)
    assert drafts > 5


def test_drafts_end_soon_after_they_turn_wrong_and_begin_again() -> None:
    block, random = RNG.integers(0, 1000, 60).tolist(), RNG.integers(0, 4, 600).tolist()
    calls = list(drafts_of(look_up(block, cost=FLOAT), block * 5 + random + block * 5))
    for start, end in ((0, 300), (900, 1200)):
        assert max(drafted for index, drafted in calls if start <= index < end) == LONGEST_DRAFT
    spent = sum(FLOAT.of(drafted) for index, drafted in calls if 330 <= index < 900)
    saved = 570 - sum(330 <= index < 900 for index, _ in calls)
    assert spent < saved + 0.03 * 570


def test_a_token_costs_less_than_a_tenth_of_a_millisecond() -> None:
    text = RNG.integers(0, 30, 8192).tolist()
    start = time.thread_time()
    lookup = look_up(text)
    for token in text:
        lookup.push(token)
        lookup.draft(99)
    assert time.thread_time() - start < 8192 * 1e-4
