"""Smoothing: the function stays the same bit for bit, outliers no longer cost precision, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from parity_tests.harness.judging.measures import token_cosines
from parity_tests.harness.sides.pytorch.reference import Reference
from qwen3vl_export.artifact import open_artifact
from qwen3vl_export.contract import IMAGE_GRID_THW, PIXEL_VALUES, VISION_ENCODER
from qwen3vl_export.errors import BuildError
from qwen3vl_export.exporter.calibration.prompts import PROMPTS_FILE, read_prompts
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.exporter.pipeline import build, write_graph
from qwen3vl_export.exporter.skeletons import Skeleton, quantize_and_store
from qwen3vl_export.exporter.smoothing import TowerSmoothing, pairs_of, smoothing_scales
from qwen3vl_export.exporter.stages import Stages
from qwen3vl_export.exporter.weights import WeightFile
from qwen3vl_export.exporter.weights.factors import Factors
from qwen3vl_export.exporter.weights.inputs import use_factors
from qwen3vl_export.recipe import load_recipe
from qwen3vl_export.recipe.quantize import Int8Dynamic, MethodSettings
from qwen3vl_export.runtime.session import load_session, session_options

from ...fixtures.outlier_checkpoint import write_outlier_checkpoint
from ...fixtures.paths import TINY
from .test_quantize import trace_skeleton

FOLDER = TINY.parents[1] / "calibration"
KEEP = ("visual.patch_embed.*", "visual.blocks.0.*")  # as docs/recipes.md advises
PER_TOKEN = {"method": "int8_dynamic", "activations": "per_token", "keep": KEEP}
IN_BLOCKS = {"method": "int8", "accuracy_level": 4}  # as the precisions int8 and int4
WORST_COSINE = 0.999

Pictures = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def outliers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_outlier_checkpoint(tmp_path_factory.mktemp("outliers"))


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    """Patches and grids of a drawn picture and of one of noise, which is harder."""
    drawn = read_prompts(FOLDER, open_checkpoint(str(TINY))).prepared[0]
    noise = np.random.default_rng(0).uniform(-1, 1, (8 * 12, drawn.pixel_values.shape[1])).astype(np.float32)
    return np.concatenate([drawn.pixel_values, noise]), np.concatenate([drawn.image_grid_thw, [[1, 8, 12]]])


@pytest.fixture(scope="module")
def truth(outliers: Path, pictures: Pictures) -> dict[Path, np.ndarray]:
    """PyTorch's features, by checkpoint."""
    return {checkpoint: Reference(checkpoint).vision(*pictures) for checkpoint in (TINY, outliers)}


def smoothing_of(checkpoint: Path, smoothing: str, **settings: Any) -> TowerSmoothing:
    opened = open_checkpoint(str(checkpoint))
    prompts = read_prompts(FOLDER, opened) if smoothing == "calibration" else None
    chosen = Int8Dynamic.model_validate({"method": "int8_dynamic", "smoothing": smoothing, **settings})
    return TowerSmoothing(opened, chosen, prompts, lambda line: None)


def features_of(checkpoint: Path, skeleton: Skeleton, work: Path, pictures: Pictures) -> np.ndarray:
    """What a skeleton computes with a checkpoint's weights."""
    with WeightFile.create(work, VISION_ENCODER) as data:
        write_graph(skeleton, open_checkpoint(str(checkpoint)), data)
    session = load_session(work / f"{VISION_ENCODER}.onnx", session_options(VISION_ENCODER, None))
    features: np.ndarray = session.run(None, dict(zip((PIXEL_VALUES, IMAGE_GRID_THW), pictures, strict=True)))[0]
    return features


def worst_cosine(features: np.ndarray, truth: np.ndarray) -> float:
    """Of a token, in the features or in a map of DeepStack."""
    maps = len(truth) * (1 + len(open_checkpoint(str(TINY)).config.vision_config.deepstack_visual_indexes))
    return float(token_cosines(features.reshape(maps, -1), truth.reshape(maps, -1)).min())


def quantized(target: str, plan: Mapping[str, Any], smoothing: TowerSmoothing | None = None) -> Skeleton:
    graph, model = trace_skeleton(TINY, VISION_ENCODER, target)
    settings = TypeAdapter(MethodSettings).validate_python(plan)
    skeleton = Skeleton(graph, model.clone(), Stages(VISION_ENCODER), smoothing=smoothing)
    return quantize_and_store(skeleton, target, settings, None)


def test_outliers_do_not_change_the_model(truth: dict[Path, np.ndarray]) -> None:
    plain, planted = truth.values()
    np.testing.assert_allclose(planted, plain, rtol=0, atol=1e-5 * np.abs(plain).max())


@pytest.mark.parametrize("checkpoint", ["tiny", "outliers"])
@pytest.mark.parametrize("smoothing", ["weights", "calibration"])
def test_the_float_graph_computes_the_same_bits(
    smoothing: str, checkpoint: str, outliers: Path, pictures: Pictures, tmp_path: Path
) -> None:
    folder = TINY if checkpoint == "tiny" else outliers
    plain, smoothed = (quantized("ort", {"method": "none"}) for _ in range(2))
    smoothed.model = use_factors(smoothed.model, smoothing_of(folder, smoothing).factors)
    works = [tmp_path / "plain", tmp_path / "smoothed"]
    results = []
    for work, skeleton in zip(works, (plain, smoothed), strict=True):
        work.mkdir()
        results.append(features_of(folder, skeleton, work, pictures))
    np.testing.assert_array_equal(results[0], results[1])
    written = [(work / f"{VISION_ENCODER}.onnx_data").read_bytes() for work in works]
    assert written[0] != written[1] or (smoothing, checkpoint) == ("weights", "tiny")  # which shows no outliers


@pytest.mark.parametrize(
    ("plan", "smoothing", "target"),
    [
        (PER_TOKEN, "weights", "ort"),
        (PER_TOKEN, "weights", "portable"),
        (PER_TOKEN, "calibration", "ort"),
        (IN_BLOCKS, "weights", "ort"),
    ],
)
@pytest.mark.parametrize("checkpoint", ["tiny", "outliers"])
def test_features_stay_close_with_and_without_outliers(
    plan: Mapping[str, Any],
    smoothing: str,
    checkpoint: str,
    target: str,
    outliers: Path,
    pictures: Pictures,
    truth: dict[Path, np.ndarray],
    tmp_path: Path,
) -> None:
    folder = TINY if checkpoint == "tiny" else outliers
    skeleton = quantized(target, plan, smoothing_of(folder, smoothing, keep=plan.get("keep", ())))
    features = features_of(folder, skeleton, tmp_path, pictures)
    assert worst_cosine(features, truth[folder]) >= WORST_COSINE


@pytest.mark.parametrize("plan", [PER_TOKEN, IN_BLOCKS])
def test_outliers_cost_precision_where_nothing_is_smoothed(
    plan: Mapping[str, Any], outliers: Path, pictures: Pictures, truth: dict[Path, np.ndarray], tmp_path: Path
) -> None:
    """The proof that the test above can fail."""
    features = features_of(outliers, quantized("ort", plan), tmp_path, pictures)
    assert worst_cosine(features, truth[outliers]) < WORST_COSINE


def test_every_product_is_smoothed_but_those_of_pixels_and_after_gelu() -> None:
    checkpoint = open_checkpoint(str(TINY))
    smoothed = {f"model.{pair.product}.weight" for pair in pairs_of(checkpoint.config.vision_config)}
    products = {
        name
        for name, reader in checkpoint.tensors.items()
        if name.startswith("model.visual.") and len(reader.shape) > 1 and "pos_embed" not in name
    }
    assert smoothed < products
    assert all(name.endswith(("patch_embed.proj.weight", "linear_fc2.weight")) for name in products - smoothed)


def test_what_is_kept_is_not_scaled() -> None:
    factors = smoothing_of(TINY, "weights", keep=("visual.blocks.0.*",)).factors
    assert factors and not any(name.startswith("visual.blocks.0.") for name in factors)


def test_scales_are_powers_of_two_around_1_and_skip_channels_without_values() -> None:
    activations, weights = torch.tensor([1.0, 64.0, 0.0, 3.0, 1.0]), torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])
    assert smoothing_scales(activations, weights).tolist() == [0.5, 4.0, 1.0, 1.0, 1.0]
    assert smoothing_scales(torch.zeros(2), torch.ones(2)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_strips_are_multiplied_like_the_whole_and_without_rounding(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    exponents = [torch.randint(-12, 13, (count,), generator=generator).float() for count in (7, 5)]
    factors = Factors(*(exponent.exp2() for exponent in exponents))
    weight = torch.randn(7, 5, generator=generator).to(dtype)
    whole = factors.scale(weight, 0)
    assert torch.equal(torch.cat([factors.scale(weight[:3], 0), factors.scale(weight[3:], 3)]), whole)
    assert torch.equal(whole.double(), weight.double() * (exponents[0][:, None] + exponents[1]).double().exp2())


def test_prompts_without_pictures_are_refused(tmp_path: Path) -> None:
    (tmp_path / PROMPTS_FILE).write_text('{"ask": "What is 2+3?"}\n', "utf-8")
    checkpoint = open_checkpoint(str(TINY))
    settings = Int8Dynamic(method="int8_dynamic", smoothing="calibration")
    smoothing = TowerSmoothing(checkpoint, settings, read_prompts(tmp_path, checkpoint), lambda line: None)
    with pytest.raises(BuildError, match=r"no prompt of calibration\.source has one\. Name some: .*smoothing: weights"):
        smoothing.factors  # noqa: B018


def test_the_manifest_records_the_prompts(tmp_path: Path) -> None:
    folder = tmp_path / "calibration"
    folder.mkdir()
    shutil.copy(FOLDER / "many-0-0.png", folder / "a.png")
    (folder / PROMPTS_FILE).write_text('{"ask": "What is this?", "images": ["a.png"]}\n', "utf-8")
    recipe = tmp_path / "smoothed.yaml"
    recipe.write_text(
        f"checkpoint: {{source: {TINY}}}\ngraphs: [{VISION_ENCODER}]\nparity: {{matrix: quick}}\n"
        "calibration: {source: ./calibration}\n"
        "quantization: {vision_encoder: {method: int8_dynamic, activations: per_token, smoothing: calibration}}\n",
        "utf-8",
    )
    lines: list[str] = []
    manifest = open_artifact(build(load_recipe(recipe), out=tmp_path / "it", log=lines.append)).manifest
    prompts = read_prompts(folder, open_checkpoint(str(TINY)))
    assert manifest.graphs[VISION_ENCODER]["calibration"] == prompts.record
    assert any(line.startswith("smoothed the inputs of 16 products of the tower, by 0.") for line in lines)
