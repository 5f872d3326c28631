"""Products of one input that are fused: the bytes of their weights one after the other, and the same outputs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser
from pydantic import TypeAdapter

from qwen3vl_export.contract import DECODER
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.exporter.checkpoint.names import FUSED, fused_name, members_of
from qwen3vl_export.exporter.quantize import quantize, storage_of
from qwen3vl_export.exporter.rewrites.products import fuse_products
from qwen3vl_export.exporter.rewrites.rows import use_gemm
from qwen3vl_export.exporter.skeletons import Skeleton, quantize_and_store
from qwen3vl_export.exporter.stages import Stages
from qwen3vl_export.exporter.weights import WeightFile, attach
from qwen3vl_export.exporter.weights.inputs import WEIGHTS, source_of, weight_inputs
from qwen3vl_export.recipe.quantize import MethodSettings

from ...fixtures.paths import TINY
from .test_quantize import run_seeded, trace_skeleton
from .test_rewrites import HEADER, make_feeds, run

METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "int8": {},
    "int4": {"symmetric": False, "algorithm": "search"},
    "int8_dynamic": {},
}
PARTS = {"none": 1, "int8": 2, "int4": 3, "int8_dynamic": 2}  # arrays of a weight
PRODUCTS = """g (float[b, s, 8] x, float[b, s, 8] y, float[6, 8] Q, float[2, 8] K, float[2, 8] V, float[3, 8] O)
=> (float[b, s, 6] q, float[b, s, 2] k, float[b, s, 2] v, float[b, s, 3] o)
{
    Kt = Transpose <perm: ints = [1, 0]> (K)
    Qt = Transpose <perm: ints = [1, 0]> (Q)
    Vt = Transpose <perm: ints = [1, 0]> (V)
    Ot = Transpose <perm: ints = [1, 0]> (O)
    k0 = MatMul (x, Kt)
    q = MatMul (x, Qt)
    v = MatMul (x, Vt)
    k = Neg (k0)
    o = MatMul (x, Ot)
}"""


def parse_settings(method: str, **settings: Any) -> Any:
    return TypeAdapter(MethodSettings).validate_python({"method": method, **settings})


@dataclass(frozen=True)
class Written:
    """A decoder on disk.

    Attributes:
        arrays: its weights by name.
        errors: of quantization, by parameter.
        bytes: of its data file.
    """

    model: onnx.ModelProto
    arrays: dict[str, np.ndarray]
    errors: dict[str, float]
    bytes: int


def write_decoder(folder: Path, settings: Any, fused: bool) -> Written:
    contract, model = trace_skeleton(TINY, DECODER, "ort")
    model = model.clone()
    if fused:
        model = fuse_products(model, partial(storage_of, settings=settings))
    model = use_gemm(quantize(model, settings, "ort"))
    folder.mkdir()
    with WeightFile.create(folder, DECODER) as file:
        ir.save(attach(model, contract, open_checkpoint(str(TINY)), file), folder / "model.onnx")
    proto = onnx.load(folder / "model.onnx")
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    return Written(proto, arrays, file.errors, (folder / f"{DECODER}.onnx_data").stat().st_size)


@pytest.mark.parametrize("method", METHODS)
def test_a_fused_weight_is_its_members_one_after_the_other(method: str, tmp_path: Path) -> None:
    settings = parse_settings(method, **METHODS[method])
    apart, fused = (write_decoder(tmp_path / str(fuse), settings, fuse) for fuse in (False, True))
    weights = [name for name in fused.arrays if "_proj" in name]
    for name in weights:
        axis = 1 if method == "int8_dynamic" and name.endswith(".quantized") else 0  # stored as columns
        members = [apart.arrays[member] for member in members_of(name)]
        np.testing.assert_array_equal(fused.arrays[name], np.concatenate(members, axis), name)
    assert {member for name in weights for member in members_of(name)} == {n for n in apart.arrays if "_proj" in n}
    assert sum(len(members_of(name)) > 1 for name in weights) == 2 * 4 * PARTS[method]  # of every layer
    assert fused.errors == apart.errors
    assert fused.bytes <= apart.bytes
    tolerance = 2e-4 if method != "int8_dynamic" else 1e-3
    np.testing.assert_allclose(run_seeded(fused.model), run_seeded(apart.model), rtol=0, atol=tolerance)


def named(text: str) -> tuple[ir.Model, dict[str, str]]:
    """A graph whose matrices are the products of a layer's attention, and its weights by the letters of the text."""
    model = ir.from_proto(parser.parse_model(HEADER + text))
    letters = {letter: f"{WEIGHTS}layers.0.self_attn.{letter.lower()}_proj.weight" for letter in "QKVO"}
    for value in model.graph.inputs:
        value.name = letters.get(str(value.name), value.name)
    return model, letters


def fused_weights(model: ir.Model) -> list[str]:
    return [name for weight in weight_inputs(model) if len(members_of(name := source_of(weight).parameter)) > 1]


def test_products_of_one_input_become_one() -> None:
    model, letters = named(PRODUCTS)
    feeds = make_feeds(model)
    expected = run(model, feeds)
    fused = fuse_products(model, lambda parameter: None)
    assert fused_weights(fused) == ["layers.0.self_attn.qkv_proj.weight"]
    for weight in weight_inputs(fused):
        rows = [feeds[letters[letter]] for letter in ("O" if "o_proj" in str(weight.name) else "QKV")]
        feeds[str(weight.name)] = np.concatenate(rows).T
    feeds = {str(value.name): feeds[str(value.name)] for value in fused.graph.inputs}
    np.testing.assert_allclose(run(fused, feeds), expected, atol=1e-5)
    onnx.checker.check_model(ir.to_proto(fused), full_check=True)
    assert [node.op_type for node in fused.graph] == ["MatMul", "Split", "Neg", "MatMul"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("v = MatMul (x, Vt)", "v = MatMul (y, Vt)"),  # of another value
        ("v = MatMul (x, Vt)", "v = MatMul (x, Kt)"),  # of a weight that is read twice
        ("Vt = Transpose <perm: ints = [1, 0]> (V)", "Vm = Neg (V)\n Vt = Transpose <perm: ints = [1, 0]> (Vm)"),
        ("float[", "float16["),
    ],
    ids=["another input", "another weight", "no weight", "half precision"],
)
def test_other_products_stay(old: str, new: str) -> None:
    model, _ = named(PRODUCTS.replace(old, new))
    assert not fused_weights(fuse_products(model, lambda parameter: None))


@pytest.mark.parametrize(("target", "count"), [("ort", 2 * 4), ("portable", 0)])
def test_a_build_fuses_the_products_of_its_own_operators(target: str, count: int) -> None:
    contract, model = trace_skeleton(TINY, DECODER, target)
    skeleton = Skeleton(contract, model.clone(), Stages(DECODER))
    settings = parse_settings("int8_dynamic")
    assert len(set(fused_weights(quantize_and_store(skeleton, target, settings, None).model))) == count


@pytest.mark.parametrize("different", ["q", "k", "v"])
def test_products_whose_weights_are_stored_otherwise_stay(different: str) -> None:
    model, _ = named(PRODUCTS)
    assert not fused_weights(fuse_products(model, lambda parameter: parameter.endswith(f".{different}_proj.weight")))


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ((), {"self_attn.qkv_proj": 4, "mlp.gate_up_proj": 4}),
        (("*.v_proj.weight",), {"mlp.gate_up_proj": 4}),
        (("*.layers.2.*",), {"self_attn.qkv_proj": 4, "mlp.gate_up_proj": 4}),  # kept alike
        (("*.layers.2.mlp.up_proj.*", "*.layers.[01].self_attn.k*"), {"self_attn.qkv_proj": 2, "mlp.gate_up_proj": 3}),
    ],
)
def test_a_pattern_that_keeps_some_members_leaves_all_apart(keep: tuple[str, ...], expected: dict[str, int]) -> None:
    _, model = trace_skeleton(TINY, DECODER, "ort")
    settings = parse_settings("int4", keep=keep)
    quantized = quantize(fuse_products(model.clone(), partial(storage_of, settings=settings)), settings, "ort")
    assert Counter(name.split(".", 3)[3].removesuffix(".weight") for name in set(fused_weights(quantized))) == expected
    kept = [source_of(weight) for weight in weight_inputs(quantized) if source_of(weight).packing is None]
    parameters = {name for source in kept for name in members_of(source.parameter) if name.endswith("_proj.weight")}
    assert all(any(fnmatchcase(name, pattern) for pattern in keep) for name in parameters)


def test_a_fused_name_names_its_members_and_no_other() -> None:
    for fused, members in FUSED.items():
        for prefix in ("", "language_model.layers.3.", "model.language_model.layers.11."):
            for suffix in ("", ".weight", ".weight.scales"):
                names = tuple(f"{prefix}{member}{suffix}" for member in members)
                assert {fused_name(name) for name in names} == {f"{prefix}{fused}{suffix}"}
                assert members_of(f"{prefix}{fused}{suffix}") == names
                assert all(members_of(name) == (name,) for name in names)
    for name in (
        "layers.0.mlp.experts.gate_up_proj",
        "layers.0.mlp.experts.3.up_proj.weight",
        "blocks.0.attn.qkv.weight",
    ):
        assert fused_name(name) is None and members_of(name) == (name,)
