"""The rule of near-tied routing: what it forgives and what not, and that PyTorch can be forced to other experts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from parity_tests.harness.sides import routing
from parity_tests.harness.sides.pytorch.reference import Reference
from parity_tests.harness.sides.routing import Choices, follow_routes, force_routes, routing_gaps

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
    preferred = np.array([[0, 1], [0, 1], [3, 2]])
    chosen = np.array([[1, 0], [0, 2], [3, 0]])  # another order only; a near-tie; far off
    np.testing.assert_allclose(routing_gaps(chosen, preferred, logits), [0.002, 0.4], atol=1e-6)
    np.testing.assert_allclose(routing_gaps(chosen, preferred, 1000 * logits), [0.002, 0.4], atol=1e-6)


def own_choices(reference: Reference, rows: Any) -> tuple[Choices, Any]:
    """PyTorch's own choices, and the router logits of its last layer of experts [S, E]."""
    choices: Choices = []
    for _ in range(LAYERS):  # one layer further each time: choices that are not known yet do not matter
        guess = [*choices, *[np.zeros((1, TOKENS, CHOSEN), np.int64)] * (LAYERS - len(choices))]
        with force_routes(reference, guess) as records:
            reference.decoder(rows, MASK, POSITIONS)
        choices = [*choices, records[len(choices)][1].reshape(1, TOKENS, CHOSEN)]
    return choices, records[-1][0]


def test_pytorch_forced_to_its_own_choices_computes_the_same(reference: Reference, rows: Any) -> None:
    plain = reference.decoder(rows, MASK, POSITIONS)
    choices, _ = own_choices(reference, rows)
    bench: Any = SimpleNamespace(reference=reference, profile=SimpleNamespace(settings={routing.SETTING: 0.0}))
    assert follow_routes(bench, plain, choices, (rows, MASK, POSITIONS)).ties == 0
    with force_routes(reference, choices):
        np.testing.assert_allclose(reference.decoder(rows, MASK, POSITIONS), plain, rtol=0, atol=1e-4)


def swap_expert(reference: Reference, rows: Any, rank: int) -> tuple[Choices, int, float]:
    """PyTorch's choices, one token's last expert in the last layer of experts replaced by the one of that rank; the
    token is the one whose logits are closest there."""
    choices, logits = own_choices(reference, rows)
    order = np.argsort(-logits, axis=-1)
    ranked = np.take_along_axis(logits, order, axis=-1)
    gaps = ranked[:, CHOSEN - 1] - ranked[:, rank]
    token = int(gaps.argmin())
    last = choices[-1].copy()
    last[0, token] = [*order[token, : CHOSEN - 1], order[token, rank]]
    return [*choices[:-1], last], token, float(gaps[token] / np.abs(logits).max())


@pytest.mark.parametrize(("rank", "explained"), [(2, True), (7, False)], ids=["near-tie", "far-off"])
def test_only_near_ties_are_forgiven(rank: int, explained: bool, reference: Reference, rows: Any) -> None:
    choices, token, gap = swap_expert(reference, rows, rank)
    near = swap_expert(reference, rows, 2)[2]
    profile = SimpleNamespace(settings={routing.SETTING: near * 1.5})
    bench: Any = SimpleNamespace(reference=reference, profile=profile)
    expected = reference.decoder(rows, MASK, POSITIONS)
    truth = follow_routes(bench, expected, choices, (rows, MASK, POSITIONS))
    assert (truth.ties, truth.explained) == (1, explained)
    assert truth.gap == pytest.approx(gap, rel=1e-4)
    changed = np.abs(truth.logits - expected).max(-1)[0] > 1e-4
    assert changed[token] == explained and not changed[:token].any()
