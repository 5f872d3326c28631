"""A loop is ended and nothing else: not a table, a form, a list, or a line of dashes."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from qwen3vl_export.runtime.answer import Answer, Limits, read_texts
from qwen3vl_export.runtime.repetition import LEAST, LONGEST, REPEATS, LoopDetector

from ...fixtures.answers import STOP_IDS, TOKENIZER, make_steps


def length_of_loop(ids: list[int]) -> int | None:
    """After how many tokens the detector ends an answer."""
    detector = LoopDetector()
    return next((number for number, token in enumerate(ids, 1) if detector.push(token)), None)


def is_loop(ids: list[int]) -> bool:
    """The definition: at the end of `ids`, a block of at most LONGEST tokens, REPEATS times, LEAST tokens in all."""
    for length in range(1, LONGEST + 1):
        covered = max(REPEATS * length, LEAST)
        if len(ids) >= covered and ids[-covered + length :] == ids[-covered:-length]:
            return True
    return False


@pytest.mark.parametrize("seed", range(12))
def test_it_ends_where_the_definition_says(seed: int) -> None:
    """Prefixes, blocks of any length, and a token that differs now and then."""
    rng = np.random.default_rng(seed)
    length = int(rng.choice([1, 2, 3, 7, 31, LONGEST, LONGEST + 1]))
    block = rng.integers(0, 3, length)
    ids = np.concatenate([rng.integers(0, 3, rng.integers(0, 40)), np.tile(block, REPEATS + 70)])
    if seed % 2:
        ids[rng.integers(0, len(ids))] = 9
    ids = ids[: 64 * 40].tolist()
    ends = length_of_loop(ids)
    if ends is None:
        assert not is_loop(ids)
    else:
        assert is_loop(ids[:ends]) and not any(is_loop(ids[:before]) for before in range(LEAST, ends))


@pytest.mark.parametrize("length", [1, 4, 5, LONGEST])
def test_a_loop_of_any_length_ends(length: int) -> None:
    assert length_of_loop(list(range(length)) * 300) == max(REPEATS * length, LEAST)


def table(rows: int, cells: str) -> str:
    return "| a | b | c |\n|---|---|---|\n" + f"{cells}\n" * rows


LEGITIMATE = {
    "an empty table": table(40, "| | | |"),
    "a table of zeros": table(40, "| 0 | 0 | 0 |"),
    "a wide table": "|" + " --- |" * 60,
    "an empty form": "<table>" + "<tr><td></td><td></td></tr>\n" * 40 + "</table>",
    "numbered rows": "".join(f"| {number} | 0 | 0 |\n" for number in range(400)),
    "a rule of dashes": "-" * 200 + "\n" + "=" * 200,
    "a table of contents": "".join(f"Chapter {number} {'.' * 60} {number}\n" for number in range(30)),
    "a matrix": ("[" + "0, " * 15 + "0],\n") * 16,
    "boxes": "".join(f'{{"bbox_2d": [10, {top}, 20, {top + 9}], "label": "seat"}},\n' for top in range(0, 900, 10)),
    "a chorus": "la la la la la la la la\n" * 8,
    "code": "    x.append(0)\n" * 30,
}


@pytest.mark.parametrize("text", LEGITIMATE.values(), ids=LEGITIMATE)
def test_what_repeats_with_a_reason_is_whole(text: str) -> None:
    whole = Answer(make_steps(text), TOKENIZER, STOP_IDS, Limits(end_loops=True), time.perf_counter())
    assert (whole.read(), whole.finish_reason) == (text, "stop")


@pytest.mark.parametrize("loop", ["ha ", "the cat sees the cat. ", "| | | |\n", "\n"])
def test_a_loop_ends_with_its_reason(loop: str) -> None:
    def answer(**limits: Any) -> Answer:
        return Answer(make_steps(loop * 1500, end=False), TOKENIZER, STOP_IDS, Limits(**limits), time.perf_counter())

    ended = answer(end_loops=True)
    text = ended.read()
    assert ended.finish_reason == "repetition" and ended.tokens < 3000
    assert (loop * 1500).startswith(text) and len(text) >= REPEATS * len(loop) - len(loop)
    assert answer().read() == loop * 1500  # off unless asked for


def test_each_row_of_a_batch_ends_by_itself() -> None:
    loop, text = "no " * 1000, "yes, " + "1 2 3 4 5 " * 20
    rows = read_texts(make_steps(loop, text), 2, TOKENIZER, STOP_IDS, Limits(end_loops=True), time.perf_counter())
    assert rows[1] == text and loop.startswith(rows[0]) and len(rows[0]) < len(loop) / 2
