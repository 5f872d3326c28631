"""`method: source`: the integers of a quantized checkpoint are those of the artifact, or the build says why not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from qwen3vl_export.contract import DECODER, EMBED_TOKENS, VISION_ENCODER
from qwen3vl_export.errors import BuildError
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.exporter.checkpoint.formats.integers import IntegerMatrix
from qwen3vl_export.exporter.checkpoint.names import TABLE, members_of
from qwen3vl_export.exporter.pipeline import build
from qwen3vl_export.exporter.plan import estimate_writing
from qwen3vl_export.exporter.quantize import quantize, storage_of
from qwen3vl_export.exporter.quantize.source import find_source_weights
from qwen3vl_export.exporter.rewrites.products import fuse_products
from qwen3vl_export.exporter.weights import WeightFile, attach, blockwise
from qwen3vl_export.manifest import MANIFEST
from qwen3vl_export.promise import FROM_SOURCE
from qwen3vl_export.publishing.model_card import quantized
from qwen3vl_export.recipe import load_recipe
from qwen3vl_export.recipe.model import Recipe
from qwen3vl_export.recipe.quantize import FromSource, Quantization

from ...fixtures import quantized_checkpoints
from ...fixtures.checkpoint_edits import edit_tensors
from ...fixtures.paths import ROOT, TINY
from ...fixtures.quantized_checkpoints import (
    FORMS,
    WriteForm,
    gptq,
    is_quantized,
    write_extreme_checkpoint,
    write_quantized_checkpoint,
)
from ...harness.checks.weights import block_errors
from ...harness.judging.verdicts import load_profile
from ...harness.sides.artifact.dequantization import dequantized_weights
from ...harness.sides.artifact.probe import readers_of, split_after
from ...harness.sides.pytorch.restored_weights import restored_weights
from ...harness.verify import open_bench, run
from .test_quantize import trace_skeleton

CARRIED = [
    *("packed", "packed-asymmetric", "packed-rows", "int8-rows", "awq"),
    *("gptq", "gptq-v2", "gptq-asymmetric", "gptq-8-bits"),
]
DEEPER = ("*.layers.[1-9].*",)  # kept where one layer shows as much as all
ASYMMETRIC = ["packed-asymmetric", "gptq-v2", "gptq-asymmetric", "awq"]


def source_recipe(dtype: str = "bfloat16", **settings: Any) -> Recipe:
    """The tiny recipe in precision `source`, with other settings of the method."""
    quantization = Quantization(decoder_model_merged=FromSource(method="source", **settings))
    return load_recipe("tiny-source").model_copy(update={"dtype": dtype, "quantization": quantization})


def quantize_graph(recipe: Recipe, checkpoint: Path, graph: str = DECODER, like: Path = TINY) -> ir.Model:
    """The skeleton of a graph with the weights that it carries over.

    Args:
        like: a checkpoint with the same graph, traced once for all tests.
    """
    weights = find_source_weights(recipe, open_checkpoint(str(checkpoint)), lambda line: None)
    _, model = trace_skeleton(like, graph, "ort", getattr(torch, recipe.compute_dtype))
    settings = recipe.quantization_of(graph)
    model = fuse_products(model.clone(), partial(storage_of, settings=settings, source_weights=weights))
    return quantize(model, settings, "ort", weights)


def write_graph(work: Path, recipe: Recipe, checkpoint: Path, graph: str = DECODER, like: Path = TINY) -> Path:
    """Write that graph."""
    contract, _ = trace_skeleton(like, graph, "ort", getattr(torch, recipe.compute_dtype))
    work.mkdir(exist_ok=True)
    with WeightFile.create(work, graph) as data:
        model = quantize_graph(recipe, checkpoint, graph, like)
        ir.save(attach(model, contract, open_checkpoint(str(checkpoint)), data), work / f"{graph}.onnx")
    assert set(data.errors.values()) == {0.0}, "the build itself compares integers with restored values"
    return work / f"{graph}.onnx"


def write_decoder(work: Path, checkpoint: Path, like: Path = TINY, dtype: str = "float32", **settings: Any) -> Path:
    """Write the decoder of a checkpoint, with settings of the method."""
    return write_graph(work, source_recipe(dtype, **settings), checkpoint, DECODER, like)


def halves(data: NDArray[np.uint8], bits: int) -> NDArray[np.float32]:
    """The unsigned integers of bytes along the last axis, the lower half of a byte first: `MatMulNBits`' definition."""
    integers = data if bits == 8 else np.stack([data & 15, data >> 4], -1).reshape(*data.shape[:-1], -1)
    return integers.astype(np.float32)


def carried_arrays(path: Path) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]]:
    """Tensor, integers [N, B, size], zero points [N, B] and scales [N, B] of every weight of a `MatMulNBits`."""
    model = onnx.load(path)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    readers = readers_of(model)
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            bits = next(attribute.i for attribute in node.attribute if attribute.name == "bits")
            data, scales, *zero_points = (stored[name] for name in node.input[1:4] if name)
            middle = np.full(scales.shape, 2 ** (bits - 1), np.float32)
            points = halves(zero_points[0], bits)[:, : scales.shape[1]] if zero_points else middle
            arrays = halves(data, bits), points, scales.astype(np.float32)
            split = split_after(node.output[0], readers)
            counts = stored[split.input[1]] if split is not None else [len(data)]
            members = members_of("model." + node.input[1].removesuffix(".quantized"))
            for name, count, end in zip(members, counts, accumulate(counts), strict=True):
                integers, zeros, factors = (array[end - count : end] for array in arrays)
                yield name, integers, zeros, factors


def values_of(integers: NDArray[Any], zero_points: NDArray[Any], scales: NDArray[Any], width: int) -> Tensor:
    blocks = (integers - zero_points[..., None]) * scales[..., None]
    return torch.from_numpy(blocks.reshape(len(blocks), -1)[:, :width])


@pytest.mark.parametrize("form", CARRIED)
def test_every_integer_is_the_checkpoints(write: WriteForm, form: str, tmp_path: Path) -> None:
    """What `MatMulNBits` is defined to compute with equals what the form is defined to store, bit for bit."""
    directory, values = write(form)
    names = set()
    for name, integers, zero_points, scales in carried_arrays(write_decoder(tmp_path, directory)):
        restored = values_of(integers, zero_points, scales, values[name].shape[1])
        assert torch.equal(restored, values[name]), name
        names.add(name)
    assert names == set(filter(is_quantized, values))


@pytest.mark.parametrize("form", ASYMMETRIC)
def test_zero_points_reach_both_ends(form: str, tmp_path: Path) -> None:
    """0 beside 15 in every word: borrowing and carrying between them would show."""
    source = write_extreme_checkpoint(tmp_path / "source")
    values = write_quantized_checkpoint(tmp_path / form, form, source)
    opened = open_checkpoint(str(tmp_path / form))
    restored = restored_weights(tmp_path / form, FORMS[form].settings)
    for name, integers, zero_points, scales in carried_arrays(write_decoder(tmp_path / "out", tmp_path / form)):
        assert set(np.unique(zero_points)) == {0, 15}, name
        assert torch.equal(values_of(integers, zero_points, scales, values[name].shape[1]), values[name]), name
        assert torch.equal(opened.read(name), values[name]) and torch.equal(restored[name], values[name]), name


@pytest.mark.parametrize("size", [16, 128, 256, -1])
def test_a_group_of_columns_is_blocks_with_one_scale(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups larger than a block repeat their scale; the last group of a row may be cut."""
    monkeypatch.setitem(FORMS, "groups", gptq(size, symmetric=False))
    values = write_quantized_checkpoint(tmp_path / "source", "groups")
    for name, integers, zero_points, scales in carried_arrays(write_decoder(tmp_path / "out", tmp_path / "source")):
        assert integers.shape[-1] == min(size % 1024, 128), name
        assert torch.equal(values_of(integers, zero_points, scales, values[name].shape[1]), values[name]), name


def transpose_scales(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    integers, scales, zero_points = parts
    return integers, scales.t().reshape(scales.shape), zero_points


def shift_scales(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    integers, scales, zero_points = parts
    return integers, scales.roll(1, -1), zero_points


def raise_zero_points(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    integers, scales, zero_points = parts
    return integers, scales, zero_points + 1


def swap_pairs(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    integers, *rest = parts
    return integers.unflatten(-1, (-1, 2)).flip(-1).flatten(-2), *rest


Mistake = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]
MISTAKES: list[Mistake] = [transpose_scales, shift_scales, raise_zero_points, swap_pairs]


def errors_against_reference(path: Path, restored: dict[str, Tensor]) -> list[float]:
    """`worst_block_error` of every carried weight, as onnxruntime reads the artifact and the harness the checkpoint."""
    return [
        float(block_errors(rows, restored["model." + name.removesuffix(".quantized")].numpy(), block).max())
        for name, block, rows in dequantized_weights(path)
    ]


def holds(profile: str, error: float) -> bool:
    (rule,) = load_profile(profile).rules[FROM_SOURCE]
    return rule.holds(error)


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("form", ["packed-asymmetric", "gptq-asymmetric", "awq"])
def test_a_mistake_in_carrying_over_is_found_in_every_profile(
    write: WriteForm, form: str, mistake: Mistake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the check of `verify`, which shares no code with the exporter; without the mistake it finds nothing."""
    directory, _ = write(form)
    restored = restored_weights(directory, FORMS[form].settings)
    right = write_decoder(tmp_path / "right", directory, keep=DEEPER)
    read = IntegerMatrix.read
    monkeypatch.setattr(IntegerMatrix, "read", lambda matrix, rows, size: mistake(read(matrix, rows, size)))
    with pytest.raises(AssertionError, match="the build itself compares"):
        write_decoder(tmp_path / "wrong", directory, keep=DEEPER)
    assert all(holds("float32", error) for error in errors_against_reference(right, restored))
    wrong = errors_against_reference(tmp_path / "wrong" / f"{DECODER}.onnx", restored)
    assert len(wrong) == 7 and not any(holds(name, error) for name in ("float16", "int8", "int4") for error in wrong)


def test_swapped_halves_of_bytes_are_found(write: WriteForm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The build's own comparison cannot see these: its values are dequantized before they are packed."""
    directory, _ = write("awq")
    restored = restored_weights(directory, FORMS["awq"].settings)
    pack = blockwise.pack_integers

    def swapped(integers: Tensor, bits: int) -> Tensor:
        data = pack(integers, bits)
        return (data >> 4) | (data << 4)

    monkeypatch.setattr(blockwise, "pack_integers", swapped)
    errors = errors_against_reference(write_decoder(tmp_path, directory, keep=DEEPER), restored)
    assert not any(holds("int4", error) for error in errors)


@pytest.mark.parametrize(("form", "dtype"), [("gptq", "float32"), ("awq", "float16")])
def test_experts_one_by_one_are_carried_over(form: str, dtype: str, single_experts: Path, tmp_path: Path) -> None:
    """Into the one operator of all experts, whose gate and up rows alternate, and into the Loop of float16."""
    write_quantized_checkpoint(tmp_path / form, form, single_experts)
    restored = restored_weights(tmp_path / form, FORMS[form].settings)
    path = write_decoder(tmp_path / "out", tmp_path / form, single_experts, dtype, keep=("*.layers.[2-9].*",))
    names = set()
    for parameter, block, rows in dequantized_weights(path):
        name = "model." + parameter.removesuffix(".quantized")
        assert holds(dtype, float(block_errors(rows, restored[name].numpy().reshape(rows.shape), block).max())), name
        names.add(name)
    layer = "model.language_model.layers.0.mlp.experts."
    assert {name for name in names if ".experts." in name} == {f"{layer}gate_up_proj", f"{layer}down_proj"}
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert ("QMoE" in operators) == (dtype == "float32")


def test_a_quantized_table_is_carried_over_to_look_ups_and_to_the_tied_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized_checkpoints, "is_quantized", lambda name: name == TABLE)
    values = write_quantized_checkpoint(tmp_path / "table", "packed-asymmetric")
    method = FromSource(method="source")
    quantization = Quantization(embeddings=method, decoder_model_merged=method)
    recipe = source_recipe().model_copy(update={"quantization": quantization})
    for graph in (EMBED_TOKENS, DECODER):
        ((_, _, rows),) = dequantized_weights(write_graph(tmp_path / "out", recipe, tmp_path / "table", graph))
        assert torch.equal(torch.from_numpy(rows), values[TABLE]), graph


def is_in_tower(name: str) -> bool:
    return ".visual.blocks." in name and name.endswith(("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight"))


def test_a_quantized_tower_is_carried_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its products; a table of positions that is quantized is no operand of theirs, and named."""
    positions = "model.visual.pos_embed.weight"
    monkeypatch.setattr(quantized_checkpoints, "is_quantized", lambda name: is_in_tower(name) or name == positions)
    values = write_quantized_checkpoint(tmp_path / "tower", "packed-asymmetric")
    keep = FromSource(method="source", keep=("visual.pos_embed.weight",))
    recipe = source_recipe().model_copy(update={"quantization": Quantization(vision_encoder=keep)})
    path = write_graph(tmp_path / "out", recipe, tmp_path / "tower", VISION_ENCODER)
    carried = {"model." + name.removesuffix(".quantized"): rows for name, _, rows in dequantized_weights(path)}
    assert set(carried) == set(filter(is_in_tower, values))
    assert all(torch.equal(torch.from_numpy(rows), values[name]) for name, rows in carried.items())
    every = Quantization(vision_encoder=FromSource(method="source"))
    with pytest.raises(
        BuildError, match=r'visual\.pos_embed\.weight is quantized and no product.*keep: \["visual\.pos'
    ):
        quantize_graph(recipe.model_copy(update={"quantization": every}), tmp_path / "tower", VISION_ENCODER)


def test_the_plan_estimates_weights_that_are_carried_over(write: WriteForm, tmp_path: Path) -> None:
    directory, _ = write("awq")
    model = quantize_graph(source_recipe(keep=DEEPER), directory)
    assert 0 < estimate_writing([model], open_checkpoint(str(directory)), tmp_path) < 60
    assert not list(tmp_path.iterdir())


def test_the_model_card_says_whose_integers_they_are() -> None:
    assert quantized(source_recipe().to_json_dict()) == ", decoder_model_merged in the integers of its source"


def test_columns_in_any_order_of_whole_groups_are_carried_over(tmp_path: Path) -> None:
    """`g_idx` that names groups in another order, block by block, is exact."""
    write_quantized_checkpoint(tmp_path / "gptq", "gptq")

    def reverse(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(".g_idx")]:
            tensors[name] = tensors[name].flip(0).contiguous()

    edit_tensors(tmp_path / "gptq", reverse)
    restored = restored_weights(tmp_path / "gptq", FORMS["gptq"].settings)
    for name, integers, zero_points, scales in carried_arrays(write_decoder(tmp_path / "out", tmp_path / "gptq")):
        assert torch.equal(values_of(integers, zero_points, scales, restored[name].shape[1]), restored[name]), name


def test_kept_weights_are_restored_and_the_others_carried_over(tmp_path: Path, write: WriteForm) -> None:
    directory = Path(shutil.copytree(write("gptq-desc-act")[0], tmp_path / "mixed"))
    first = "model.language_model.layers.0.self_attn.q_proj.g_idx"
    edit_tensors(directory, lambda tensors: tensors.update({first: tensors[first].sort().values}))
    keep = ("*.mlp.*", "*.[kvo]_proj.weight", "*.layers.[1-9].*")
    (carried,) = carried_arrays(write_decoder(tmp_path / "out", directory, keep=keep))
    assert carried[0] == "model.language_model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("form", "recipe", "says"),
    [
        ("awq", "tiny-source", "28 weights keep the checkpoint's integers, zero points and scales"),
        (
            "awq",
            "tiny-int4",
            "warning: decoder_model_merged: 28 weights quantized by awq are restored and rounded again by method: "
            "int4; method: source (--precision source) keeps their integers",
        ),
        (
            "awq",
            "tiny-bf16",
            "decoder_model_merged: 28 weights quantized by awq are restored in bfloat16, activations are not "
            "quantized; method: source (--precision source) keeps their integers",
        ),
        ("gptq-desc-act", "tiny-bf16", "restored in bfloat16, activations are not quantized"),
        ("fp8", "tiny-bf16", "restored in bfloat16, activations are not quantized"),
        ("awq", "tiny-portable", "restored in float32, activations are not quantized"),
    ],
)
def test_the_build_says_what_becomes_of_quantized_weights(write: WriteForm, form: str, recipe: str, says: str) -> None:
    lines: list[str] = []
    find_source_weights(load_recipe(recipe), open_checkpoint(str(write(form)[0])), lines.append)
    (line,) = lines
    assert line.endswith(says), line


def test_other_weights_that_the_recipes_dtype_rounds_are_counted(write: WriteForm, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(write("awq")[0], tmp_path / "awq"))
    norm = torch.full((128,), 1 + 2**-10, dtype=torch.float16)
    edit_tensors(directory, lambda tensors: tensors.update({"model.language_model.norm.weight": norm}))
    opened = open_checkpoint(str(directory))
    warning = (
        "warning: dtype: bfloat16 rounds tensors that awq stores in another dtype (1); dtype: float32 holds them all"
    )
    for dtype, warnings in (("bfloat16", [warning]), ("float32", [])):
        lines: list[str] = []
        find_source_weights(source_recipe(dtype), opened, lines.append)
        assert lines[1:] == warnings


def test_an_artifact_with_carried_integers_is_proven_like_an_exact_one(write: WriteForm, tmp_path: Path) -> None:
    """Nothing is rounded, so all limits are float32's: against the checkpoint, restored, and on the artifact's own
    weights. The text graphs, without a tower."""
    directory, _ = write("awq")
    recipe = tmp_path / "text.yaml"
    recipe.write_text(f"extends: {ROOT / 'recipes' / 'tiny.yaml'}\ngraphs: [embeddings, decoder_model_merged]\n")
    recipe.write_text(recipe.read_text() + "parity: {matrix: quick, held_out: false}\n")
    loaded = load_recipe(tmp_path / "text-source.yaml")
    artifact = build(loaded, checkpoint=str(directory), out=tmp_path / "text", log=lambda line: None)
    bench = open_bench(artifact, "quick", directory)
    report = run(bench, "quick", only=lambda check: check.case is None or check.name == "text-only")
    assert report.profile.name == "float32" and report.failures == []
    stages = {outcome.stage for outcome in report.outcomes}
    assert {FROM_SOURCE, "decoder", "decode", "dequantized_decoder", "dequantized_decode"} <= stages
    assert json.loads((artifact / MANIFEST).read_text())["graphs"][DECODER]["weight_errors"]["worst"] == 0
