"""The reference's weights of a checkpoint that transformers does not load: whole tensors, restored from each format's
definition, and experts stacked.

Written apart from the exporter's readers, which it checks. Returns the checkpoint's tensors by their names, float32
where they were quantized, experts stacked. Knows names and arithmetic; nothing about the artifact.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from qwen3vl_export.errors import ParityError
from qwen3vl_export.exporter.checkpoint.files import stored_weights

EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")

Tensors = dict[str, Tensor]


def restoring(checkpoint: Path, settings: Mapping[str, Any] | None) -> Callable[[Tensors], Tensors] | None:
    """What turns stored tensors, all of some modules, into those that transformers loads; None if it loads them itself.

    Args:
        settings: the checkpoint's `quantization_config`, if it has one.

    Raises:
        ParityError: its `quant_method` is not known.
    """
    if settings is None:
        return stack_experts if any(map(EXPERT.fullmatch, stored_weights(checkpoint).tensors)) else None
    is_bitsandbytes = settings.get("load_in_4bit") or settings.get("load_in_8bit")
    method = "bitsandbytes" if is_bitsandbytes else settings.get("quant_method")
    if method not in METHODS:
        raise ParityError(f"{checkpoint}: quant_method is {method!r}, known are {', '.join(METHODS)}")
    return lambda tensors: stack_experts(METHODS[method](tensors, settings))


def restored_weights(checkpoint: Path, settings: Mapping[str, Any] | None) -> Tensors | None:
    """Every tensor of a checkpoint's files; None if transformers loads them as they are.

    Raises:
        ParityError: as `restoring`.
    """
    restore = restoring(checkpoint, settings)
    if restore is None:
        return None
    stored = stored_weights(checkpoint).tensors
    files = {tensor.file: load_file(tensor.file) for tensor in stored.values()}
    return restore({name: files[tensor.file][name] for name, tensor in stored.items()})


def stack_experts(tensors: Tensors) -> Tensors:
    """Experts stored one by one, stacked as transformers' modules hold them: it does not load them otherwise."""
    stacked = {name: tensor for name, tensor in tensors.items() if not EXPERT.fullmatch(name)}
    experts: defaultdict[str, dict[tuple[int, str], Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if match := EXPERT.fullmatch(name):
            experts[match[1]][int(match[2]), match[3]] = tensor
    for module, matrices in experts.items():
        indices = sorted({index for index, _ in matrices})
        pairs = [torch.cat([matrices[index, "gate"], matrices[index, "up"]]) for index in indices]
        stacked[f"{module}.gate_up_proj"] = torch.stack(pairs)
        stacked[f"{module}.down_proj"] = torch.stack([matrices[index, "down"] for index in indices])
    return stacked


def modules_with(tensors: Tensors, suffix: str) -> list[str]:
    return [name.removesuffix(suffix) for name in tensors if name.endswith(suffix)]


def without(tensors: Tensors, endings: tuple[str, ...]) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(endings)}


def unpack(words: Tensor, bits: int) -> Tensor:
    """The 4- or 8-bit integers of 32-bit words along the last axis, from their lowest bits up."""
    octets = words.contiguous().view(torch.uint8)
    return octets if bits == 8 else torch.stack([octets & 15, octets >> 4], -1).flatten(-2)


def spread(grid: Tensor, shape: torch.Size, block: Sequence[int], groups: Tensor | None = None) -> Tensor:
    """A grid [..., r, c] over a matrix [..., R, C]: each number over its block, or over the columns of its group."""
    columns = torch.arange(shape[-1]) // block[1] if groups is None else groups.long()
    return grid.float().repeat_interleave(block[0], -2)[..., : shape[-2], columns]


def restore_fp8(tensors: Tensors, settings: Mapping[str, Any]) -> Tensors:
    """X = float8 x the scale of its block, `X_scale_inv`."""
    restored = without(tensors, ("_scale_inv", "activation_scale"))
    for name in modules_with(tensors, "_scale_inv"):
        codes, scales = tensors[name], tensors[f"{name}_scale_inv"]
        block = settings.get("weight_block_size")
        restored[name] = codes.float() * (spread(scales, codes.shape, block) if block else scales)
    return restored


def restore_compressed_tensors(tensors: Tensors, settings: Mapping[str, Any]) -> Tensors:
    """(code - zero point) x scale; packed codes and zero points are half their range above the signed ones."""
    weights = [group["weights"] for group in settings["config_groups"].values()]
    structures = [w.get("block_structure") or [128, 128] for w in weights if w["strategy"] == "block"]
    parts = ("packed", "scale", "zero_point", "shape", "g_idx")
    activations = ("input_scale", "input_zero_point", "output_scale", "output_zero_point")
    restored = without(tensors, (*(f".weight_{part}" for part in parts), *activations))
    for module in modules_with(tensors, ".weight_scale"):
        packed, scales, points, size, groups = (tensors.get(f"{module}.weight_{part}") for part in parts)
        assert scales is not None
        if packed is not None and size is not None:
            bits = packed.shape[1] * 32 // int(size[1])
            codes = unpack(packed, bits)[:, : int(size[1])].float() - 2 ** (bits - 1)
            if points is not None and points.dtype == torch.int32:
                points = unpack(points.t(), bits).t()[: len(codes)].float() - 2 ** (bits - 1)
        else:
            codes = tensors[f"{module}.weight"].float()
        grid = scales.reshape(1, 1) if scales.ndim < 2 else scales
        block = structures[0] if structures else (-(-len(codes) // len(grid)), codes.shape[1] // grid.shape[1])
        used = groups if groups is not None and int(groups.min()) >= 0 else None
        if points is not None:
            codes = codes - spread(points.reshape(grid.shape), codes.shape, block, used)
        restored[f"{module}.weight"] = codes * spread(grid, codes.shape, block, used)
    return restored


def restore_gptq(tensors: Tensors, settings: Mapping[str, Any]) -> Tensors:
    """(code - zero point) x scale of the group of each column; words of version 1 hold zero points less one."""
    bits = settings["bits"]
    ones = 0 if settings.get("checkpoint_format") == "gptq_v2" else {4: 0x11111111, 8: 0x01010101}[bits]
    restored = without(tensors, (".qweight", ".qzeros", ".scales", ".g_idx"))
    for module in modules_with(tensors, ".qweight"):
        scales, groups = tensors[f"{module}.scales"].t(), tensors.get(f"{module}.g_idx")
        codes = unpack(tensors[f"{module}.qweight"].t(), bits).float()
        codes = codes if groups is None else codes[:, : len(groups)]
        zero_points = unpack(tensors[f"{module}.qzeros"] + ones, bits).t()[: len(codes)]
        block = (1, codes.shape[1] // scales.shape[1])
        offsets, factors = (spread(grid, codes.shape, block, groups) for grid in (zero_points, scales))
        restored[f"{module}.weight"] = (codes - offsets) * factors
    return restored


def restore_awq(tensors: Tensors, settings: Mapping[str, Any]) -> Tensors:
    """(code - zero point) x scale; a word's values 0, 1, 2, … are in its places 0, 4, 1, 5, 2, 6, 3, 7."""
    places = [0, 4, 1, 5, 2, 6, 3, 7]
    restored = without(tensors, (".qweight", ".qzeros", ".scales"))
    for module in modules_with(tensors, ".qweight"):
        scales = tensors[f"{module}.scales"]
        codes, zero_points = (
            unpack(words, 4).reshape(len(words), -1, 8)[..., places].flatten(1)[:, : scales.shape[1]].float()
            for words in (tensors[f"{module}.qweight"], tensors[f"{module}.qzeros"])
        )
        repeats = len(codes) // len(scales)
        offsets, factors = (grid.repeat_interleave(repeats, 0) for grid in (zero_points, scales.float()))
        restored[f"{module}.weight"] = ((codes - offsets) * factors).t().contiguous()
    return restored


def restore_bitsandbytes(tensors: Tensors, settings: Mapping[str, Any]) -> Tensors:
    """Numbers of the stored table, times the scale of their block, rounded; or int8 times the row's maximum / 127."""
    parts = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
    states = [name for name in tensors if ".weight.quant_state." in name]
    restored = without(tensors, (*(f".weight.{part}" for part in parts), ".SCB", ".weight_format"))
    for name in states:
        weight = name.partition(".quant_state.")[0]
        state = json.loads(bytes(restored.pop(name).tolist()))
        scales, table, nested_scales, nested_table = (tensors.get(f"{weight}.{part}") for part in parts)
        assert scales is not None and table is not None
        if nested_scales is not None and nested_table is not None:
            scales = in_blocks(nested_table[scales.long()], nested_scales, state["nested_blocksize"])
            scales = scales + state["nested_offset"]
        octets = tensors[weight].flatten().view(torch.uint8)
        codes = torch.stack([octets >> 4, octets & 15], 1).flatten()[: math.prod(state["shape"])]
        values = in_blocks(table[codes.long()], scales, state["blocksize"])
        restored[weight] = values.to(getattr(torch, state["dtype"])).float().reshape(state["shape"])
    for module in modules_with(tensors, ".SCB"):
        restored[f"{module}.weight"] = tensors[f"{module}.weight"] * tensors[f"{module}.SCB"][:, None] * (1 / 127)
    return restored


def in_blocks(values: Tensor, scales: Tensor, size: int) -> Tensor:
    """Values [n], each times the scale of its block."""
    return values * scales.repeat_interleave(size)[: len(values)]


def restore_auto_round(tensors: Tensors, settings: Mapping[str, Any]) -> Tensors:
    """As GPTQ, in which "auto_round" and "auto_round:gptqmodel" are its version 2, or as AWQ."""
    packing = settings.get("packing_format", "auto_round:gptq")
    if "awq" in packing:
        return restore_awq(tensors, settings)
    version = "gptq_v2" if packing in ("auto_round", "auto_round:gptqmodel") else "gptq"
    return restore_gptq(tensors, {**settings, "checkpoint_format": version})


METHODS: dict[str, Callable[[Tensors, Mapping[str, Any]], Tensors]] = {
    "fp8": restore_fp8,
    "compressed-tensors": restore_compressed_tensors,
    "gptq": restore_gptq,
    "awq": restore_awq,
    "bitsandbytes": restore_bitsandbytes,
    "auto-round": restore_auto_round,
}
