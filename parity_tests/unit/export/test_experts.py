"""Mixture of experts: layouts, routing and sparsity against transformers; the shipped runtime proves the whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3VLMoeForConditionalGeneration
from transformers.models.qwen3_vl_moe.configuration_qwen3_vl_moe import Qwen3VLMoeTextConfig
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextExperts

from qwen3vl_export import contract
from qwen3vl_export.errors import CheckpointError, RecipeError
from qwen3vl_export.exporter.checkpoint import Checkpoint, open_checkpoint
from qwen3vl_export.exporter.checkpoint.tensors import TransposedReader
from qwen3vl_export.exporter.lowering import lower
from qwen3vl_export.exporter.lowering.experts import use_operator
from qwen3vl_export.exporter.optimize import optimize
from qwen3vl_export.exporter.pipeline import build
from qwen3vl_export.exporter.simplify import simplify
from qwen3vl_export.exporter.submodules import check_tensors
from qwen3vl_export.exporter.submodules.experts import EXPERTS
from qwen3vl_export.exporter.submodules.geometry import PLACEHOLDER_DOMAIN
from qwen3vl_export.exporter.trace import OPSET
from qwen3vl_export.exporter.weights.inputs import weight_inputs
from qwen3vl_export.promise import EXPERTS_AS_OPERATOR as OPERATOR
from qwen3vl_export.promise import HEAD_STAGES
from qwen3vl_export.recipe import load_recipe

from ...fixtures.kernels import CUDA, ON_THE_CPU, kinds, load_graph, read_record, without_kernel
from ...fixtures.moe_checkpoint import WEIGHTS, Layout, write_moe_checkpoint
from ...fixtures.official import config, published_shapes, write_sparse_checkpoint
from ...fixtures.traces import build_submodule, trace
from ...harness.options import Options
from ...harness.sides.routing import SETTING
from ...harness.verify import open_bench, run, verify

LAYOUTS: tuple[Layout, ...] = ("published", "modules")
E, K, H, I = 6, 3, 32, 48  # noqa: E741 - the legend of submodules/experts.py


def build_moe(tmp_path: Path, layout: Layout = "published", **recipe: str) -> tuple[Path, Path]:
    """A small mixture-of-experts checkpoint and the artifact built from it."""
    checkpoint = write_moe_checkpoint(tmp_path / layout, layout)
    keys = {"name": "moe", "min_onnxruntime": '"1.23.2"', **recipe}
    lines = [f"{key}: {value}" for key, value in keys.items()]
    file = tmp_path / "moe.yaml"
    file.write_text("\n".join([*lines, f"checkpoint: {{source: ./{layout}}}", "parity: {matrix: quick}"]) + "\n")
    return build(load_recipe(file), out=tmp_path / "moe", force=True, log=lambda line: None), checkpoint


@pytest.fixture(scope="module")
def build_for(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Builds the artifact and checkpoint of a target, once."""
    return cache(lambda target: build_moe(tmp_path_factory.mktemp(target), target=target))


BuildFor = Callable[[str], tuple[Path, Path]]


@pytest.mark.parametrize("target", ["ort", "portable"])
def test_text_pictures_video_batches_and_caches_equal_pytorch(build_for: BuildFor, target: str) -> None:
    """The quick matrix through the shipped runtime: left padding, chunked prefill, decoding, greedy tokens."""
    artifact, checkpoint = build_for(target)
    assert verify(artifact, Options(matrix="quick", checkpoint=checkpoint)) == 0


@pytest.mark.parametrize(("head", "target"), [(contract.EMBEDDING, "ort"), (contract.RERANKER, "portable")])
def test_a_mixture_embeds_and_ranks_as_pytorch_does(head: str, target: str, tmp_path: Path) -> None:
    """No such checkpoint is published; the head is the recipe's. Without a tower, which experts have no part in."""
    artifact, checkpoint = build_moe(tmp_path, target=target, head=head, graphs="[embed_tokens, decoder_model_merged]")
    report = run(open_bench(artifact, "quick", checkpoint), "quick", cases=("text-only",))
    assert report.passed and HEAD_STAGES[head][0] in {outcome.stage for outcome in report.outcomes}


def test_half_precision_parts_from_pytorch_at_near_tied_routes_only(tmp_path: Path) -> None:
    """In one of these cases a token takes another expert, and the logits after it are another 1.3 away; routed the
    same way, PyTorch is as close as anywhere else."""
    artifact, checkpoint = build_moe(tmp_path, dtype="float16")
    bench = open_bench(artifact, "quick", checkpoint)
    cases = ("file-turned-by-exif-200x320", "photograph-451x300", "text-only")
    report = run(bench, "quick", only=lambda check: check.stage in ("decoder", "decode"), cases=cases)
    assert [outcome.message for outcome in report.failures] == []
    ties = [outcome for outcome in report.outcomes if outcome.measures.get("routing_ties")]
    assert ties and all(outcome.measures["routing_gap"] > 0 for outcome in ties)
    strict = replace(bench.profile, settings={**bench.profile.settings, SETTING: 0.0})
    bench.profile = strict
    again = run(bench, "quick", only=lambda check: check.id in {outcome.id for outcome in ties}, cases=cases)
    assert again.failures, "the rule forgives nothing that would not have failed"


def test_experts_of_8_bits_part_from_pytorch_at_near_tied_routes_only(tmp_path: Path) -> None:
    """Weights and activations of the experts in 8 bits, all other weights in bfloat16."""
    quantization = "{decoder_model_merged: {method: int8}, embeddings: {method: int8}}"
    artifact, checkpoint = build_moe(tmp_path, dtype="bfloat16", quantization=quantization)
    bench = open_bench(artifact, "quick", checkpoint)
    stages = ("decoder", "prefill", "teacher_forced", "decode")
    cases = ("as-traced-24x24", "wide-512x128", "batch-of-different-sizes", "text-only")
    report = run(bench, "quick", only=lambda check: check.stage in stages, cases=cases)
    assert [outcome.message for outcome in report.failures] == []
    assert len(report.outcomes) == 16 and any(outcome.measures.get("routing_ties") for outcome in report.outcomes)


@pytest.mark.parametrize(
    ("target", "dtype", "method", "experts"),
    [
        ("ort", "float32", "int4", "auto"),
        ("ort", "float16", "int4", "auto"),
        ("ort", "float16", "int4", OPERATOR),
        ("ort", "float16", "int8", "auto"),
        ("portable", "float32", "int8", "auto"),
    ],
)
def test_quantized_experts_compute_what_pytorch_does_with_the_same_weights(
    target: str, dtype: str, method: str, experts: str, tmp_path: Path
) -> None:
    """One operator, and the Loop that restores one expert's numbers, in both widths."""
    quantization = f"{{decoder_model_merged: {{method: {method}, symmetric: {str(target == 'portable').lower()}}}}}"
    oldest = '"1.28.0"'
    keys = {"target": target, "dtype": dtype, "quantization": quantization, "experts": experts}
    artifact, checkpoint = build_moe(tmp_path, **keys, min_onnxruntime=oldest)
    if experts == OPERATOR:  # all of it a kernel of CUDA's, too
        decoder = artifact / "onnx" / f"{contract.DECODER}.onnx"
        assert without_kernel(decoder, CUDA).items() <= ON_THE_CPU.items()
        assert "QMoE" in {kind.node.op_type for kind in kinds(load_graph(decoder))}
    bench = open_bench(artifact, "quick", checkpoint)
    cases = ("minimum-64x64", "wide-512x128", "batch-of-different-sizes")
    report = run(bench, "quick", only=lambda check: check.stage.startswith("dequantized_dec"), cases=cases)
    assert len(report.outcomes) == 6
    assert [outcome.message for outcome in report.failures] == []


def test_the_portable_decoder_has_standard_operators_only(build_for: BuildFor) -> None:
    model = onnx.load(build_for("portable")[0] / "onnx" / f"{contract.DECODER}.onnx", load_external_data=False)
    assert {opset.domain for opset in model.opset_import} == {""}
    assert sum(node.op_type == "Loop" for node in model.graph.node) == 3  # one of the four layers is dense


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_reads_as_transformers_loads_it(tmp_path: Path, layout: Layout) -> None:
    directory = write_moe_checkpoint(tmp_path / layout, layout)
    opened = open_checkpoint(str(directory))
    check_tensors(opened, torch.float32)
    model = Qwen3VLMoeForConditionalGeneration.from_pretrained(directory, dtype=torch.bfloat16)
    loaded = model.state_dict()
    assert set(loaded) == set(opened.tensors)
    for name, tensor in loaded.items():
        assert opened.tensors[name].shape == tuple(tensor.shape), name
        assert torch.equal(opened.read(name), tensor), name
        assert torch.equal(opened.read(name, slice(1, 3)), tensor[1:3]), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_transformers_saves_is_read_back(tmp_path: Path, layout: Layout) -> None:
    """transformers 5.23 saves experts as its modules hold them, whichever layout it loaded; here in several files."""
    directory = write_moe_checkpoint(tmp_path / layout, layout)
    model = Qwen3VLMoeForConditionalGeneration.from_pretrained(directory, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "saved", max_shard_size="500KB")
    opened = open_checkpoint(str(tmp_path / "saved"))
    experts = [entry for name, entry in opened.tensors.items() if ".mlp.experts." in name]
    assert len(experts) == 6 and not any(isinstance(entry, TransposedReader) for entry in experts)
    assert len({entry.file for entry in opened.tensors.values()}) > 1
    for name, tensor in model.state_dict().items():
        assert torch.equal(opened.read(name), tensor), name


def test_both_layouts_give_the_same_bytes(build_for: BuildFor, tmp_path: Path) -> None:
    artifacts = [build_for("ort")[0], build_moe(tmp_path, "modules", graphs="[decoder_model_merged]")[0]]
    data = [(artifact / "onnx" / f"{contract.DECODER}.onnx_data").read_bytes() for artifact in artifacts]
    assert hashlib.sha256(data[0]).digest() == hashlib.sha256(data[1]).digest()


@pytest.mark.parametrize(
    ("shape", "message"), [((8, 128, 300), "[8, 128, 300], config.json asks for [8, 512, 128]"), (None, "is missing")]
)
def test_misshaped_and_missing_experts_are_named(tmp_path: Path, shape: tuple[int, ...] | None, message: str) -> None:
    directory = write_moe_checkpoint(tmp_path / "moe")
    tensors = load_file(directory / WEIGHTS)
    name = "model.language_model.layers.2.mlp.experts.gate_up_proj"
    del tensors[name]
    if shape is not None:
        tensors[name] = torch.zeros(shape)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        check_tensors(open_checkpoint(str(directory)), torch.float32)
    assert name in str(caught.value) and message in str(caught.value)


def test_experts_with_another_activation_are_refused(tmp_path: Path) -> None:
    directory = write_moe_checkpoint(tmp_path / "moe")
    values = json.loads((directory / "config.json").read_text())
    values["text_config"]["hidden_act"] = "gelu"
    (directory / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="hidden_act is 'gelu'"):
        open_checkpoint(str(directory))


def test_an_onnxruntime_without_experts_is_refused_before_building(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r'needs onnxruntime 1\.23\.2.*Write min_onnxruntime: "1\.23\.2"'):
        build_moe(tmp_path, min_onnxruntime='"1.23.1"')
    level = "{decoder_model_merged: {method: int4, accuracy_level: 4}}"
    with pytest.raises(
        RecipeError, match=r'needs onnxruntime 1\.31\.0.*accuracy_level. Write min_onnxruntime: "1\.31\.0"'
    ):
        build_moe(tmp_path, quantization=level)
    with pytest.raises(RecipeError, match=r'1\.28\.0 with quantized experts in float16. Write min_onnxruntime: "1\.28'):
        keys = {"dtype": "float16", "experts": OPERATOR, "quantization": level.replace(", accuracy_level: 4", "")}
        build_moe(tmp_path, **keys)
    assert not (tmp_path / "moe").exists()


def lower_experts(target: str, dtype: torch.dtype, experts: str = "auto") -> onnx.ModelProto:
    """A model of one `Experts` placeholder lowered for the target, weights as inputs.

    Args:
        experts: as in a recipe.
    """
    onnx_dtype = {torch.float32: ir.DataType.FLOAT, torch.float16: ir.DataType.FLOAT16}[dtype]
    shapes = {"x": ["n", H], "chosen": ["n", K], "shares": ["n", K], "gate_up": [E, 2 * I, H], "down": [E, H, I]}
    inputs = [
        ir.Value(
            name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.INT64 if name == "chosen" else onnx_dtype)
        )
        for name, shape in shapes.items()
    ]
    node = ir.node(EXPERTS, inputs, domain=PLACEHOLDER_DOMAIN)
    node.outputs[0].name, node.outputs[0].shape = "out", ir.Shape(["n", H])
    node.outputs[0].type = ir.TensorType(onnx_dtype)
    graph = ir.Graph(inputs, node.outputs, nodes=[node], opset_imports={"": OPSET, PLACEHOLDER_DOMAIN: 1}, name="g")
    model = ir.Model(graph, ir_version=10)
    model = lower(target)(use_operator(model) if experts == OPERATOR else model)
    del model.graph.opset_imports[PLACEHOLDER_DOMAIN]
    return ir.to_proto(model)


def compute(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    result: np.ndarray = ort.InferenceSession(model.SerializeToString()).run(None, feeds)[0]
    return result


def make_experts(tokens: int, seed: int = 0) -> tuple[dict[str, np.ndarray], Qwen3VLMoeTextExperts]:
    """Inputs for `lower_experts`, and transformers' module with the same weights."""
    torch.manual_seed(seed)
    text = Qwen3VLMoeTextConfig(hidden_size=H, moe_intermediate_size=I, num_experts=E, num_experts_per_tok=K)
    text._experts_implementation = "eager"
    module = Qwen3VLMoeTextExperts(text)
    with torch.no_grad():
        module.gate_up_proj.normal_(0, H**-0.5)
        module.down_proj.normal_(0, I**-0.5)
    shares, chosen = torch.randn(tokens, E).mul(3).softmax(-1).topk(K, dim=-1)
    feeds = {
        "x": torch.randn(tokens, H),
        "chosen": chosen,
        "shares": shares / shares.sum(-1, keepdim=True),
        "gate_up": module.gate_up_proj.detach(),
        "down": module.down_proj.detach(),
    }
    return {name: tensor.numpy() for name, tensor in feeds.items()}, module


@pytest.mark.parametrize("tokens", [0, 1, 2, 33])
@pytest.mark.parametrize(
    ("target", "dtype", "experts", "limit"),
    [
        ("ort", torch.float32, "auto", 2e-6),
        ("portable", torch.float32, "auto", 2e-6),
        ("ort", torch.float16, "auto", 4e-3),
        ("ort", torch.float16, OPERATOR, 4e-3),
    ],
)
def test_experts_equal_transformers(target: str, dtype: torch.dtype, experts: str, limit: float, tokens: int) -> None:
    feeds, module = make_experts(tokens)
    tensors = {name: array if name == "chosen" else torch.from_numpy(array).to(dtype) for name, array in feeds.items()}
    feeds = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    computed = compute(lower_experts(target, dtype, experts), feeds)
    wide = {name: torch.from_numpy(array) for name, array in feeds.items()}
    with torch.no_grad():
        module.gate_up_proj.copy_(wide["gate_up"])
        module.down_proj.copy_(wide["down"])
        expected = module(wide["x"].float(), wide["chosen"], wide["shares"].float())
    assert computed.shape == expected.shape
    assert np.abs(computed.astype(np.float32) - expected.numpy()).max(initial=0) <= limit


@pytest.mark.parametrize("target", ["ort", "portable"])
def test_experts_that_are_not_chosen_are_not_touched(target: str) -> None:
    """Their weights are NaN: any product with them, even with share 0, would give NaN."""
    feeds, module = make_experts(9)
    feeds["chosen"] = np.stack([np.random.default_rng(n).permutation([0, 2, 5]) for n in range(9)])
    unchosen = [1, 3, 4]
    with torch.no_grad():
        expected = module(*(torch.from_numpy(feeds[name]) for name in ("x", "chosen", "shares"))).numpy()
    for name in ("gate_up", "down"):
        feeds[name] = feeds[name].copy()
        feeds[name][unchosen] = np.nan
    assert np.abs(compute(lower_experts(target, torch.float32), feeds) - expected).max() <= 2e-6


def test_experts_as_one_operator_are_a_kernel_of_cuda() -> None:
    """In float16 the recipe decides: the operator, or the Loop that suits CPUs."""
    record = read_record(CUDA)
    model = lower_experts("ort", torch.float16, OPERATOR)
    names = [kind.name for kind in kinds(model) if kind.node.op_type != "Constant"]
    assert sum("com.microsoft.MoE" in name for name in names) == 1 and all(record[name] for name in names)
    loop = lower_experts("ort", torch.float16)
    assert "Loop" in {node.op_type for node in loop.graph.node}


@pytest.mark.parametrize("size", ["30b-a3b", "235b-a22b"])
@pytest.mark.parametrize("target", ["ort", "portable"])
def test_a_published_decoder_is_traced_at_full_width_without_a_weight(size: str, target: str) -> None:
    """Two layers: `trace` raises if a dim of the contract was specialised, and every weight must be there once."""
    settings = config(size, layers=2, depth=4)
    checkpoint = Checkpoint(Path("nowhere"), "random", "local", settings)
    submodule = build_submodule(checkpoint, contract.DECODER, target, torch.float32)
    model = optimize(simplify(trace(submodule, torch.float32)), target)
    shapes = {value.name: value.shape for value in model.graph.inputs if not str(value.name).startswith("weights/")}
    assert shapes == {tensor.name: ir.Shape(tensor.shape) for tensor in contract.decoder(checkpoint.facts).inputs}
    assert [v.shape for v in model.graph.outputs] == [ir.Shape(t.shape) for t in submodule.graph.outputs]
    sizes = {str(value.name): tuple(value.shape or ()) for value in weight_inputs(model)}
    text = settings.text_config
    for layer in range(2):
        prefix = f"weights/language_model.layers.{layer}.mlp.experts"
        inner, hidden = text.moe_intermediate_size, text.hidden_size
        assert sizes[f"{prefix}.gate_up_proj"] == (128, 2 * inner, hidden)
        assert sizes[f"{prefix}.down_proj"] == (128, hidden, inner)
    constants = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    assert constants < 100_000


def test_a_sparse_checkpoint_has_the_published_shapes_and_no_bytes(tmp_path: Path) -> None:
    settings = config("235b-a22b")
    opened = open_checkpoint(str(write_sparse_checkpoint(tmp_path / "zeros", settings)))
    files = {entry.file for entry in opened.tensors.values()}
    assert len(files) > 90 and sum(file.stat().st_size for file in files) > 470e9
    assert sum(file.stat().st_blocks * 512 for file in files) < 10e6
    shapes = published_shapes(settings)
    name = "model.language_model.layers.93.mlp.experts.down_proj"
    assert shapes[name] == (128, 1536, 4096) and opened.tensors[name].shape == (128, 4096, 1536)
    assert opened.read(name, slice(127, 128)).shape == (1, 4096, 1536)
    check_tensors(opened, torch.float32)


def test_dense_layers_are_where_the_config_says(tmp_path: Path) -> None:
    settings: Any = config("30b-a3b", layers=4, vocab_size=64)
    settings.text_config.mlp_only_layers = [2]
    settings.text_config.decoder_sparse_step = 2  # experts in layers 1 and 3
    submodule = build_submodule(
        Checkpoint(tmp_path, "random", "local", settings), contract.DECODER, "ort", torch.float32
    )
    names = {name for name, _ in submodule.module.named_parameters()}
    with_experts = {name.split(".")[2] for name in names if ".mlp.experts." in name}
    dense = {name.split(".")[2] for name in names if ".mlp.gate_proj." in name}
    assert (with_experts, dense) == ({"1", "3"}, {"0", "2"})
