"""Records how other packages store small quantized matrices, and the values that they restore from them.

    python scripts/record_packings.py PACKAGE ...        writes parity_tests/fixtures/packings.safetensors

Run it in an environment that has the package: bitsandbytes, gptqmodel, auto_gptq, autoawq, auto_round or
compressed_tensors (of auto_gptq 0.7.1, `nn_modules` alone: the rest of it needs transformers 4). Its cases in the file
are replaced, those of other packages stay. Matrices are (code - zero point) x scale of random codes, so that each
package finds the very codes; zero points are the lowest and highest ones among others.
`parity_tests/unit/export/test_packings.py` compares both sides' readers with the file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FILE = Path(__file__).resolve().parents[1] / "parity_tests" / "fixtures" / "packings.safetensors"
Case = tuple[str, dict[str, Any], dict[str, Tensor], Tensor]  # name, settings, stored parts, values [R, C]


def make_codes(rows: int, columns: int, group: int, bits: int, lowest: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random codes [R, C], zero points [R, G] from `lowest` to the highest code, scales [R, G] of half precision."""
    highest, groups = 2**bits - 1, -(-columns // group)
    codes = torch.randint(0, highest + 1, (rows, columns))
    codes[:, :2] = torch.tensor([0, highest])
    zero_points = torch.randint(lowest, highest + 1, (rows, groups))
    zero_points[0], zero_points[-1] = lowest, highest
    scales = (torch.rand(rows, groups) * 0.02 + 0.01).half().float()
    return codes, zero_points, scales


def as_linear(codes: Tensor, zero_points: Tensor, scales: Tensor, groups: Tensor) -> nn.Linear:
    """A layer of the values that codes stand for; `groups` [C] is the group of each column."""
    linear = nn.Linear(codes.shape[1], codes.shape[0], bias=False)
    linear.weight.data = (codes - zero_points[:, groups]) * scales[:, groups]
    return linear


def buffers(module: nn.Module) -> dict[str, Tensor]:
    """What a packed module saves."""
    return {f".{name}": tensor for name, tensor in module.state_dict().items()}


def record_bitsandbytes() -> Iterator[Case]:
    import bitsandbytes as bnb
    from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant, int8_vectorwise_quant, quantize_4bit

    assert bnb
    for name, shape, dtype, options in (
        ("nf4", (12, 128), torch.bfloat16, {"quant_type": "nf4", "blocksize": 64}),
        ("nf4-nested", (66, 128), torch.bfloat16, {"quant_type": "nf4", "blocksize": 32, "compress_statistics": True}),
        ("nf4-ragged", (9, 30), torch.float16, {"quant_type": "nf4", "blocksize": 64, "compress_statistics": True}),
        ("nf4-storage", (8, 64), torch.bfloat16, {"quant_type": "nf4", "quant_storage": torch.bfloat16}),
        ("fp4", (12, 128), torch.float32, {"quant_type": "fp4", "blocksize": 128}),
    ):
        weight, state = quantize_4bit(torch.randn(shape).to(dtype), **options)
        parts = {f".weight.{part}": tensor.clone() for part, tensor in state.as_dict(packed=True).items()}
        settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": options["quant_type"]}
        yield name, settings, parts | {".weight": weight}, dequantize_4bit(weight, state)
    codes, scales, _ = int8_vectorwise_quant(torch.randn(12, 40).half())
    parts = {".weight": codes, ".SCB": scales, ".weight_format": torch.tensor(0, dtype=torch.uint8)}
    values = int8_vectorwise_dequant(codes, scales)
    yield "int8", {"quant_method": "bitsandbytes", "load_in_8bit": True}, parts, values


def record_gptqmodel() -> Iterator[Case]:
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.backend import BACKEND
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module, convert_gptq_v2_to_v1_format_module

    for name, bits, (rows, columns), group, desc_act, checkpoint_format in (
        ("4-bit", 4, (32, 64), 16, False, "gptq"),
        ("4-bit-v2", 4, (32, 64), 16, False, "gptq_v2"),
        ("desc-act", 4, (32, 64), 16, True, "gptq"),
        ("8-bit", 8, (32, 64), 32, False, "gptq"),
        ("row", 4, (32, 64), 64, False, "gptq"),
        ("odd", 4, (20, 44), 16, False, "gptq"),
    ):
        codes, zero_points, scales = make_codes(rows, columns, group, bits)
        groups = torch.arange(columns) // group
        groups = groups[torch.randperm(columns)] if desc_act else groups
        size = -1 if name == "row" else group
        module = TorchLinear(
            bits=bits,
            group_size=size,
            sym=False,
            desc_act=desc_act,
            in_features=columns,
            out_features=rows,
            bias=False,
            pack_dtype=torch.int32,
            backend=BACKEND.TORCH,
            adapter=None,
            register_buffers=True,
        )
        linear = as_linear(codes, zero_points, scales, groups)
        module.pack_original(linear, scales, zero_points.float(), groups.int())
        module.post_init()
        settings = {"quant_method": "gptq", "bits": bits, "group_size": size, "sym": False, "desc_act": desc_act}
        settings["checkpoint_format"] = checkpoint_format
        if checkpoint_format == "gptq":
            module.qzero_format(format=2)
            config = type("Config", (), {"bits": bits, "pack_dtype": torch.int32})()
            convert_gptq_v2_to_v1_format_module(module, config)
        names = (".qweight", ".qzeros", ".scales", ".g_idx")
        parts = {part: tensor.clone() for part, tensor in buffers(module).items() if part in names}
        if checkpoint_format == "gptq":
            convert_gptq_v1_to_v2_format_module(module, bits, torch.int32)
        yield name, settings, parts, module.dequantize_weight().t()


def record_auto_gptq() -> Iterator[Case]:
    from auto_gptq.nn_modules.qlinear.qlinear_cuda import QuantLinear

    for name, bits in (("4-bit", 4), ("8-bit", 8)):
        codes, zero_points, scales = make_codes(32, 64, 32, bits, lowest=1)  # it cannot store zero points of 0
        groups = torch.arange(64) // 32
        module = QuantLinear(bits, 32, 64, 32, False, weight_dtype=torch.float16)
        linear = as_linear(codes, zero_points, scales, groups).half()
        module.pack(linear, scales, zero_points.float(), groups.int())
        values = module(torch.eye(64, dtype=torch.float16)).t()
        settings = {"quant_method": "gptq", "bits": bits, "group_size": 32, "sym": False, "desc_act": False}
        yield name, settings, buffers(module), values


def record_autoawq() -> Iterator[Case]:
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    codes, zero_points, scales = make_codes(32, 64, 16, 4)
    linear = as_linear(codes, zero_points, scales, torch.arange(64) // 16)
    module = WQLinear_GEMM.from_linear(linear, 4, 16, scales=scales.t(), zeros=zero_points.t())
    parts = buffers(module)
    values = dequantize_gemm(parts[".qweight"], parts[".qzeros"], parts[".scales"], 4, 16).t()
    yield "gemm", {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"}, parts, values


def record_auto_round() -> Iterator[Case]:
    from auto_round.export.export_to_awq.utils import WQLinear_GEMM, dequantize_gemm
    from auto_round_extension.torch.qlinear_torch import QuantLinear
    from auto_round_extension.torch.qlinear_torch_zp import QuantLinear as QuantLinearLessOne

    settings = {"quant_method": "auto-round", "data_type": "int", "sym": False}
    for name, packing, module_type, bits, lowest in (
        ("gptq", "auto_round:auto_gptq", QuantLinearLessOne, 4, 1),  # it stores zero points of 0 as 1
        ("plain", "auto_round", QuantLinear, 4, 0),
        ("plain-8-bit", "auto_round:gptqmodel", QuantLinear, 8, 0),
    ):
        codes, zero_points, scales = make_codes(32, 64, 32, bits, lowest)
        module = module_type(bits, 32, 64, 32, False)
        module.device = "cpu"
        linear = as_linear(codes, zero_points, scales, torch.arange(64) // 32)
        module.pack(linear, scales, zero_points.float(), None, device="cpu")
        values = module(torch.eye(64, dtype=torch.float16)).t()
        yield name, settings | {"packing_format": packing, "bits": bits, "group_size": 32}, buffers(module), values
    codes, zero_points, scales = make_codes(32, 64, 16, 4)
    linear = as_linear(codes, zero_points, scales, torch.arange(64) // 16)
    module = WQLinear_GEMM.from_linear(linear, 4, 16, scales=scales.t(), zeros=zero_points.t(), device="cpu")
    parts = buffers(module)
    values = dequantize_gemm(parts[".qweight"], parts[".qzeros"], parts[".scales"], 4, 16).t()
    yield "awq", settings | {"packing_format": "auto_round:auto_awq", "bits": 4, "group_size": 16}, parts, values


def record_compressed_tensors() -> Iterator[Case]:
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    for name, bits, (rows, columns), group, symmetric in (
        ("group", 4, (16, 64), 32, True),
        ("asymmetric", 4, (20, 64), 16, False),
        ("8-bit", 8, (16, 64), 32, False),
        ("odd", 4, (12, 44), 44, False),
    ):
        codes, zero_points, scales = make_codes(rows, columns, group, bits)
        zero_points = torch.full_like(zero_points, 2 ** (bits - 1)) if symmetric else zero_points
        weight = as_linear(codes, zero_points, scales, torch.arange(columns) // group).weight.data
        weights = {"num_bits": bits, "type": "int", "strategy": "group", "group_size": group, "symmetric": symmetric}
        scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
        state = {"weight": weight, "weight_scale": scales}
        if not symmetric:
            state["weight_zero_point"] = (zero_points - 2 ** (bits - 1)).to(torch.int8)
        stored = PackedQuantizationCompressor.compress(state, scheme)
        values = PackedQuantizationCompressor.decompress(dict(stored), scheme)["weight"]
        group_0 = {"targets": ["Linear"], "weights": weights, "format": "pack-quantized"}
        settings = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"0": group_0}}
        yield name, settings, {f".{part}": tensor for part, tensor in stored.items()}, values


PACKAGES: dict[str, Callable[[], Iterator[Case]]] = {
    name.removeprefix("record_"): function for name, function in list(globals().items()) if name.startswith("record_")
}


def main() -> None:
    """Record the packages named on the command line."""
    tensors = load_file(FILE) if FILE.is_file() else {}
    cases: dict[str, str] = {}
    if FILE.is_file():
        with safe_open(FILE, framework="pt") as stored:
            cases = dict(stored.metadata())
    for package in sys.argv[1:]:
        torch.manual_seed(0)
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{package}/")}
        cases = {case: text for case, text in cases.items() if not case.startswith(f"{package}/")}
        release = version(package.replace("_", "-"))
        for name, settings, parts, values in PACKAGES[package]():
            case = f"{package}/{name}"
            cases[case] = json.dumps({"release": release, "settings": settings})
            tensors |= {f"{case}/X{part}": tensor.detach().contiguous() for part, tensor in parts.items()}
            tensors[f"{case}/values"] = values.detach().contiguous()
            print(case, {part: list(tensor.shape) for part, tensor in parts.items()})
    save_file(tensors, FILE, metadata=cases)


if __name__ == "__main__":
    main()
