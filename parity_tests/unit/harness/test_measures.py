"""The measures on numbers whose distance is known by hand."""

from __future__ import annotations

import gc
import math
import tracemalloc
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import Qwen3VLVisionModel

from parity_tests.fixtures.official import config, narrow, random_tensors
from parity_tests.harness.checks.stages import vision_finding
from parity_tests.harness.judging import measures, scales
from parity_tests.harness.judging.verdicts import load_profile
from qwen3vl_export.runtime.arrays import Floats

PROFILE16 = load_profile("float16")
ROWS = np.array([[3.0, 4.0], [1.0, 0.0]], np.float32)


def test_equal_arrays_are_at_distance_zero() -> None:
    values = measures.closeness(ROWS, ROWS)
    assert values["max_abs"] == 0.0
    assert values["worst_token_cosine"] == pytest.approx(1.0, abs=1e-15)


def test_max_abs_is_the_largest_difference() -> None:
    assert measures.max_abs(ROWS, ROWS + np.array([[0, 0], [0, -0.5]])) == 0.5


def test_the_worst_token_is_not_hidden_by_the_mean() -> None:
    truth = np.ones((100, 8), np.float32)
    guess = truth.copy()
    guess[42] = -1
    values = measures.closeness(guess, truth)
    assert values["mean_cosine"] == pytest.approx(0.98)
    assert values["worst_token_cosine"] == pytest.approx(-1.0)
    assert values["worst_token"] == 42


def test_cosine_of_zero_rows() -> None:
    zero = np.zeros_like(ROWS)
    assert measures.token_cosines(zero, zero).tolist() == [1.0, 1.0]
    assert measures.token_cosines(zero, ROWS).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_numbers_stay_non_finite(bad: float) -> None:
    guess = ROWS.copy()
    guess[0, 0] = bad
    with np.errstate(invalid="ignore"):
        assert not math.isfinite(measures.max_abs(guess, ROWS) or 0.0)
        assert measures.differences(guess, guess) == (1 if math.isnan(bad) else 0)
        assert measures.logit_closeness(guess, ROWS)["top1_agreement"] is None


def test_nothing_to_compare_is_null_and_not_zero() -> None:
    empty = np.empty((0, 4), np.float32)
    assert measures.max_abs(empty, empty) is None
    assert measures.differences(empty, empty) is None
    assert measures.nmse(empty, empty) is None
    assert set(measures.closeness(empty, empty).values()) == {None}
    assert measures.logit_closeness(empty, empty)["max_abs"] is None


def test_shapes_must_agree() -> None:
    with pytest.raises(measures.ShapeMismatch, match=r"shape \(1, 2\), the reference has \(2, 2\)"):
        measures.max_abs(ROWS[:1], ROWS)


def test_kl_divergence_by_hand() -> None:
    truth, guess = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert measures.kl_divergence(guess, truth)[0] == pytest.approx(expected)


def test_jaccard_by_hand() -> None:
    truth, guess = np.array([[4.0, 3, 2, 1]]), np.array([[4.0, 1, 3, 2]])
    assert measures.jaccard(guess, truth, k=2)[0] == pytest.approx(1 / 3)  # {0, 1} and {0, 2}
    assert measures.jaccard(truth, truth)[0] == 1.0


def test_psnr_by_hand() -> None:
    truth = np.array([2.0, -2.0])
    assert measures.psnr(truth + 0.2, truth) == pytest.approx(20.0)
    assert measures.psnr(truth + 0.2, truth, peak=20) == pytest.approx(40.0)
    assert measures.psnr(truth, truth) == math.inf


def test_relative_by_hand() -> None:
    assert measures.relative(np.array([1.0, 4.5]), np.array([1.0, 4.0])) == pytest.approx(0.125)
    assert measures.relative(np.array([1.0]), np.array([0.0])) is None


def test_nmse_by_hand() -> None:
    assert measures.nmse(np.array([1.0, 1.0]), np.array([1.0, 2.0])) == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    ("a", "b", "length"), [([1, 2, 3], [1, 2, 3], 3), ([1, 2], [1, 2, 3], 2), ([9], [1], 0), ([], [1], 0)]
)
def test_common_prefix(a: list[int], b: list[int], length: int) -> None:
    assert measures.common_prefix(a, b) == length


def explain(candidate: list[float], reference: list[float]) -> measures.Difference:
    guess, truth = np.array(candidate), np.array(reference)
    return measures.explain_difference(
        0, 3, int(guess.argmax()), guess, int(truth.argmax()), truth, margin=1e-3 / np.abs(truth).max()
    )


def test_a_near_tie_is_recognised() -> None:
    difference = explain([1.0004, 1.0, 0.0], [1.0, 1.0003, 0.0])
    assert difference.near_tie
    assert difference.candidate_gap == pytest.approx(4e-4)


def test_a_gap_beyond_the_margin_is_no_near_tie() -> None:
    assert not explain([1.002, 1.0, 0.0], [1.0, 1.0003, 0.0]).near_tie


def test_a_token_outside_the_top_two_is_no_near_tie() -> None:
    assert not explain([1.0, 1.0001, 1.0002], [1.0002, 1.0001, 1.0]).near_tie


def test_the_gap_of_best_tokens_is_that_of_the_worst_position_at_which_they_differ() -> None:
    truth = np.array([[4.0, 3.0, -8.0], [2.0, 1.9, 0.0], [5.0, 4.8, 0.0]])
    guess = np.array([[3.5, 3.0, -8.0], [1.8, 2.0, 0.0], [4.9, 5.0, 0.0]])
    gaps = measures.top1_gaps(guess, truth, guess.argmax(-1), truth.argmax(-1))
    assert gaps == pytest.approx([0.2 / 2, 0.2 / 5])
    assert measures.logit_closeness(guess, truth)["top1_gap"] == pytest.approx(0.1)
    assert measures.logit_closeness(truth, truth)["top1_gap"] == 0.0
    assert measures.top1_gaps(np.array([[0.0, 1.0]]), np.zeros((1, 2)), np.array([1]), np.array([0])) == np.inf


@pytest.mark.parametrize("positions", [4, 4000])
def test_a_near_tie_is_no_fault_and_another_swap_is_one_however_many_positions(positions: int) -> None:
    truth = np.tile([20.0, 19.99, 0.0], (positions, 1))
    near, far = truth.copy(), truth.copy()
    near[1] = 19.99, 20.0, 0.0
    far[1] = 19.0, 20.0, 0.0
    for guess, passes in ((near, True), (far, False)):
        values = measures.logit_closeness(guess, truth)
        (verdict,) = [
            verdict for verdict in PROFILE16.judge("decoder", values, truth.size) if verdict.measure == "top1_gap"
        ]
        assert verdict.passed is passes


@pytest.mark.parametrize("block", [200, 1000, 4096])
@pytest.mark.parametrize("shape", [(2, 3, 544), (999, 31), (1, 4097), (300, 1), (129, 8)])
@pytest.mark.parametrize("stride", [1, 2], ids=["contiguous", "strided"])
def test_blocks_change_no_bit(block: int, shape: tuple[int, ...], stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(*shape[:-1], shape[-1] * stride)).astype(np.float32)
    guess = (truth + 1e-3 * rng.normal(size=truth.shape)).astype(np.float32)
    pair = guess[..., ::stride], truth[..., ::stride]

    def measure() -> dict[str, object]:
        single = {"psnr": measures.psnr(*pair, peak=2.0), "differences": measures.differences(*pair)}
        return {**measures.closeness(*pair), **measures.logit_closeness(*pair), **single}

    whole = measure()
    wide = [np.ascontiguousarray(array, np.float64) for array in pair]
    assert whole["nmse"] == ((wide[0] - wide[1]) ** 2).sum() / (wide[1] ** 2).sum()
    monkeypatch.setattr(measures, "BLOCK", block)
    assert measure() == whole


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_numbers_are_seen_in_every_block(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
    guess = truth.copy()
    guess[40, 3] = bad
    monkeypatch.setattr(measures, "BLOCK", 128)
    with np.errstate(invalid="ignore"):
        assert not math.isfinite(measures.max_abs(guess, truth) or 0.0)
        values = measures.logit_closeness(guess, truth)
    assert not math.isfinite(values["worst_kl"] or 0.0)
    assert values["top1_agreement"] is None


def test_little_memory_is_taken_beside_the_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = np.random.default_rng(0).normal(size=(500, 2000)).astype(np.float32)
    guess = truth + np.float32(1e-3)
    monkeypatch.setattr(measures, "BLOCK", 20_000)
    tracemalloc.start()
    try:
        measures.logit_closeness(guess, truth)
        measures.closeness(guess, truth)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < truth.nbytes / 2


def test_a_margin_grows_with_the_logits() -> None:
    guess, truth = np.array([1.0004, 1.0, 0.0]), np.array([1.0, 1.0003, 0.0])
    for scale in (1e-2, 1, 1e3):
        difference = measures.explain_difference(0, 0, 0, guess * scale, 1, truth * scale, margin=5e-4)
        assert difference.near_tie and difference.candidate_gap == pytest.approx(4e-4 * scale)


def test_the_loss_of_a_text_is_a_share_of_chance() -> None:
    ids = np.array([[3, 1, 2]])
    assert measures.text_loss(np.zeros((2, 3, 7)), np.repeat(ids, 2, axis=0)) == pytest.approx(1.0)
    knowing = np.zeros((1, 3, 7))
    knowing[0, [0, 1], [1, 2]] = 100  # each token predicts the next
    assert measures.text_loss(knowing, ids) == pytest.approx(0.0, abs=1e-12)
    assert (measures.text_loss(knowing, ids[:, ::-1]) or 0) > 10
    assert measures.text_loss(knowing[:, :1], ids[:, :1]) is None


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_scaled_differences_do_not_depend_on_the_unit(scale: float) -> None:
    generator = np.random.default_rng(0)
    truth = generator.standard_normal((50, 8)) * scale
    guess = truth + generator.standard_normal((50, 8)) * scale * 1e-3
    channels = scales.channel_scales(truth, np.inf)
    assert scales.largest_in_channels(guess - truth, channels) == pytest.approx(3e-3, rel=0.5)
    assert measures.logit_closeness(guess, truth)["scaled_max_abs"] == pytest.approx(1e-3, rel=0.5)


def test_a_massive_channel_neither_hides_the_others_nor_fails_itself() -> None:
    truth = np.random.default_rng(0).standard_normal((50, 64))
    plain = scales.channel_scales(truth, np.inf)
    assert np.allclose(plain, np.sqrt(np.square(truth).mean()))
    massive = truth.copy()
    massive[:, 5] *= 1000
    changed = scales.channel_scales(massive, np.inf)
    assert np.delete(changed, 5).max() <= 2.5 * plain[0]
    assert changed[5] == pytest.approx(250, rel=0.3)
    assert scales.channel_scales(truth, 0.5).max() == 0.5


def test_what_has_no_scale_has_no_scaled_difference() -> None:
    zero = np.zeros((3, 4))
    assert scales.in_units(1.0, scales.rms(zero)) is None and scales.magnitude(np.empty((0, 4))) is None
    assert scales.largest_in_channels(zero, scales.channel_scales(zero, 1.0)) is None
    assert math.isnan(scales.largest_in_channels(np.full((1, 2), np.nan), np.ones(2)) or 0)


@pytest.mark.parametrize("tokens", [12, measures.MANY_TOKENS - 1, measures.MANY_TOKENS, 5003])
@pytest.mark.parametrize("step", [0.0, 0.25], ids=["distinct", "many-equal"])
@pytest.mark.parametrize("bad", [None, math.nan, -math.inf])
def test_the_best_tokens_are_those_of_argpartition(tokens: int, step: float, bad: float | None) -> None:
    logits = np.random.default_rng(0).normal(size=(20, tokens)).astype(np.float32)
    logits = np.round(logits / step).astype(np.float32) * np.float32(step) if step else logits
    if bad is not None:
        logits[::2, ::7] = bad
    expected = np.sort(np.argpartition(-logits, 9)[:, :10])
    assert (np.sort(measures.best_tokens(logits, 10)) == expected).all()


def test_the_limit_on_features_allows_for_the_rounding_of_every_block() -> None:
    assert scales.growth(1) == scales.growth(scales.SHALLOW) == 1 and scales.growth(24) == 6
    config = {"vision_config": {"depth": 24, "deepstack_visual_indexes": [5, 11, 17]}}
    assert scales.tower_blocks(config) == (24, 6, 12, 18)
    generator = np.random.default_rng(0)
    truth = generator.standard_normal((50, 8))
    guess = truth + 1e-3 * generator.standard_normal((50, 8))
    candidate, reference = (np.concatenate([side, side], axis=1) for side in (guess, truth))
    grid = np.ones((1, 3), np.int64)
    shallow = vision_finding(candidate, reference, (4, 2), grid).measures["scaled_max_abs"]
    deep = vision_finding(candidate, reference, (24, 2), grid).measures["scaled_max_abs"]
    assert shallow == pytest.approx(deep), "a map is measured by the blocks before it"
    assert vision_finding(candidate, reference, (24, 12), grid).measures["scaled_max_abs"] == pytest.approx(shallow / 3)


@pytest.mark.parametrize("depth", [4, 16, 32])
def test_rounding_in_a_tower_grows_no_faster_than_its_limit(depth: int) -> None:
    """PyTorch in float32 against PyTorch in float64, on random towers; what onnxruntime rounds comes on top."""
    model_config = narrow(config("2b", layers=1, depth=depth))
    tower = Qwen3VLVisionModel(model_config.vision_config).eval()
    tensors = ((name.removeprefix("model.visual."), tensor) for name, tensor in random_tensors(model_config))
    tower.load_state_dict({name: tensor for name, tensor in tensors if name in tower.state_dict()})
    grid = torch.tensor([[1, 16, 16], [1, 8, 24], [2, 8, 8]])
    patches = torch.rand(int(grid.prod(1).sum()), 1536, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        rounded = tower(patches, grid_thw=grid).pooler_output.numpy()
        truth = tower.double()(patches.double(), grid_thw=grid).pooler_output.numpy()
    limit = next(rule.limit for rule in load_profile("float32").rules["vision"] if rule.measure == "scaled_max_abs")
    finding = vision_finding(rounded, truth, (depth,), grid.numpy())
    scaled = finding.measures["scaled_max_abs"] or math.inf
    assert limit / 10 < scaled < limit


@pytest.mark.parametrize(
    "measure", [measures.nmse, measures.psnr, measures.relative, measures.closeness, measures.logit_closeness]
)
def test_what_was_measured_is_not_kept(measure: Callable[[Floats, Floats], object]) -> None:
    """Logits and tables are gigabytes: they go with their last user, not when garbage is next collected."""
    candidate, reference = np.zeros((3, 1000), np.float32), np.ones((3, 1000), np.float32)
    kept = weakref.ref(candidate)
    gc.disable()
    try:
        measure(candidate, reference)
        del candidate
        assert kept() is None
    finally:
        gc.enable()
