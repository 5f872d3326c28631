"""The rule of near-tied routing: what it forgives, what it does not, and that PyTorch can be sent another way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from parity_tests.harness.sides import routing
from parity_tests.harness.sides.reference import Reference
from parity_tests.harness.sides.routing import Choices, gaps_of, routed, sent

from ...fixtures.moe_checkpoint import CHOSEN, write_moe_checkpoint

TOKENS = 12
LAYERS = 3  # with experts; one of the four is dense
MASK = np.ones((1, TOKENS), np.int64)
POSITIONS = np.broadcast_to(np.arange(TOKENS), (3, 1, TOKENS)).copy()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(write_moe_checkpoint(tmp_path_factory.mktemp("moe")))


@pytest.fixture(scope="module")
def rows(reference: Reference) -> Any:
    hidden = reference.model.config.text_config.hidden_size
    return np.random.default_rng(0).standard_normal((1, TOKENS, 4 * hidden)).astype(np.float32)


def test_gaps_are_of_tokens_whose_experts_differ() -> None:
    logits = np.array([[3.0, 2.0, 1.0, 0.0], [5.0, 4.99, 4.98, 0.0], [1.0, 2.0, 3.0, 4.0]], np.float32)
    theirs = np.array([[0, 1], [0, 1], [3, 2]])
    mine = np.array([[1, 0], [0, 2], [3, 0]])  # another order only; a near-tie; far off
    np.testing.assert_allclose(gaps_of(mine, theirs, logits), [0.01, 2.0], atol=1e-6)


def own_choices(reference: Reference, rows: Any) -> tuple[Choices, Any]:
    """PyTorch's own choices, and the router logits of its last layer of experts [S, E]."""
    choices: Choices = []
    for _ in range(LAYERS):  # one layer further each time: what is not known yet is taken from anywhere
        guess = [*choices, *[np.zeros((1, TOKENS, CHOSEN), np.int64)] * (LAYERS - len(choices))]
        with sent(reference, guess) as met:
            reference.decoder(rows, MASK, POSITIONS)
        choices = [*choices, met[len(choices)][1].reshape(1, TOKENS, CHOSEN)]
    return choices, met[-1][0]


def test_pytorch_sent_its_own_way_says_the_same(reference: Reference, rows: Any) -> None:
    plain = reference.decoder(rows, MASK, POSITIONS)
    choices, _ = own_choices(reference, rows)
    bench: Any = SimpleNamespace(reference=reference, profile=SimpleNamespace(settings={routing.SETTING: 0.0}))
    assert routed(bench, plain, choices, rows, MASK, POSITIONS).ties == 0
    with sent(reference, choices):
        np.testing.assert_allclose(reference.decoder(rows, MASK, POSITIONS), plain, rtol=0, atol=1e-4)


def swapped(reference: Reference, rows: Any, rank: int) -> tuple[Choices, int, float]:
    """PyTorch's choices, one token's last expert in the last layer of experts replaced by the one of that rank; the
    token is the one whose logits are closest there."""
    choices, logits = own_choices(reference, rows)
    order = np.argsort(-logits, axis=-1)
    ranked = np.take_along_axis(logits, order, axis=-1)
    gaps = ranked[:, CHOSEN - 1] - ranked[:, rank]
    token = int(gaps.argmin())
    others = choices[-1].copy()
    others[0, token] = [*order[token, : CHOSEN - 1], order[token, rank]]
    return [*choices[:-1], others], token, float(gaps[token])


@pytest.mark.parametrize(("rank", "explained"), [(2, True), (7, False)], ids=["near-tie", "far-off"])
def test_only_near_ties_are_forgiven(rank: int, explained: bool, reference: Reference, rows: Any) -> None:
    choices, token, gap = swapped(reference, rows, rank)
    near = swapped(reference, rows, 2)[2]
    profile = SimpleNamespace(settings={routing.SETTING: near * 1.5})
    bench: Any = SimpleNamespace(reference=reference, profile=profile)
    expected = reference.decoder(rows, MASK, POSITIONS)
    found = routed(bench, expected, choices, rows, MASK, POSITIONS)
    assert (found.ties, found.explained) == (1, explained)
    assert found.gap == pytest.approx(gap, rel=1e-4)
    changed = np.abs(found.logits - expected).max(-1)[0] > 1e-4
    assert changed[token] == explained and not changed[:token].any()
