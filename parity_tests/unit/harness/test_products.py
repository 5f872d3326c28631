"""PyTorch's large products by oneDNN: which ones, and the same results as `F.linear` gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from parity_tests.harness import verify
from parity_tests.harness.sides.pytorch import products
from parity_tests.harness.sides.pytorch.products import LARGE_WEIGHT, LargeProducts
from parity_tests.harness.sides.pytorch.reference import Reference
from parity_tests.harness.sides.pytorch.reference_cache import Store

from ...fixtures.paths import TINY
from .test_streaming import inputs_of

WIDTH = 1024  # a weight of [WIDTH, WIDTH] is large


@pytest.fixture
def multiplied(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of the weights that oneDNN multiplied with."""
    shapes: list[torch.Size] = []
    multiply = products.multiply

    def record(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        shapes.append(weight.shape)
        return multiply(input, weight, bias)

    monkeypatch.setattr(products, "multiply", record)
    return shapes


@pytest.mark.parametrize("rows", [(1,), (3, 70), (2, 0)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_product_of_a_linear_layer(rows: tuple[int, ...], with_bias: bool, multiplied: list[torch.Size]) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(WIDTH, WIDTH + 1, bias=with_bias)
    hidden = torch.randn(*rows, WIDTH)
    with torch.no_grad():
        expected = layer.double()(hidden.double())
        layer.float()
        with LargeProducts():
            result = layer(hidden)
        float32 = layer(hidden)
    assert multiplied == [layer.weight.shape]  # not outside
    assert result.dtype == torch.float32 and result.shape == expected.shape
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(result, float32, rtol=0, atol=1e-5)


def test_rows_and_weights_that_do_not_lie_in_order(multiplied: list[torch.Size]) -> None:
    torch.manual_seed(0)
    weight, hidden = torch.randn(WIDTH, WIDTH), torch.randn(WIDTH, 5).T
    with torch.no_grad(), LargeProducts():
        torch.testing.assert_close(F.linear(hidden, weight), hidden @ weight.T, rtol=0, atol=1e-3)
        torch.testing.assert_close(F.linear(hidden, weight.T), hidden @ weight, rtol=0, atol=1e-3)
    assert len(multiplied) == 1  # a transposed weight would have to be copied


@pytest.mark.parametrize("kind", ["small", "float64", "bfloat16", "trained", "meta"])
def test_other_products_stay_as_they_are(kind: str, multiplied: list[torch.Size]) -> None:
    width = WIDTH - 1 if kind == "small" else WIDTH
    assert WIDTH**2 == LARGE_WEIGHT
    dtype = {"float64": torch.float64, "bfloat16": torch.bfloat16}.get(kind, torch.float32)
    weight = torch.ones(width, WIDTH, dtype=dtype, device="meta" if kind == "meta" else "cpu")
    with torch.set_grad_enabled(kind == "trained"), LargeProducts():
        F.linear(torch.ones(1, WIDTH, dtype=dtype, device=weight.device), weight=weight)
    assert multiplied == []


@pytest.mark.parametrize("streamed", [True, False])
def test_the_decoder_computes_with_them_and_the_tower_does_not(
    streamed: bool, tmp_path: Path, multiplied: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tower's features have the tightest limits, and oneDNN rounds more."""
    monkeypatch.setattr(products, "LARGE_WEIGHT", 1)
    reference = Reference(TINY, Store(tmp_path, ""), streamed=streamed)
    prompt = inputs_of(reference, [[1, 4, 6]])
    reference.obtain(lambda: reference.vision(prompt.pixel_values, prompt.image_grid_thw))
    assert multiplied == []
    start = reference.obtain(lambda: reference.prefill(prompt))
    layers = [
        module for module in reference.model.model.language_model.modules() if isinstance(module, torch.nn.Linear)
    ]
    assert len(multiplied) == len(layers) + 1  # the head
    reference.decoder(start.inputs_embeds, prompt.attention_mask, start.position_ids)
    assert len(multiplied) == 2 * (len(layers) + 1)


def test_verdicts_with_them(
    tiny_artifact: Path, tmp_path: Path, multiplied: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "LARGE_WEIGHT", 1)
    report = verify.run(verify.open_bench(tiny_artifact, "quick", cache=tmp_path), cases=["minimum-64x64"])
    assert [outcome.id for outcome in report.outcomes if not outcome.passed] == []
    assert len(multiplied) > 100
