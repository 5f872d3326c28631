"""Checkpoints: mutated settings and index, and safetensors files with mutated headers.

What reads them is what a build reads before it traces: config, facts, tensors, tied heads, settings and provenance.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random

from parity_tests.fixtures.paths import TINY

from ..mutations import Json, dump, mutate_bytes, mutate_value
from .base import Target, named, replaced, split_name

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
FILES = (  # by how often they are mutated
    *("config.json",) * 5,
    *(INDEX,) * 3,
    *("generation_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "tokenizer_config.json"),
    *("tokenizer.json", "processor_config.json", "chat_template.json", "special_tokens_map.json", "added_tokens.json"),
    *(ADAPTER_CONFIG,) * 2,
)
QUANTIZATIONS: tuple[Json, ...] = (
    {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"]},
    {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True},
    {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
    {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"a": {"weights": {"num_bits": 4}}},
    },
    {"quant_method": "bitsandbytes", "load_in_4bit": True},
)
ADAPTER: Json = {
    "peft_type": "LORA",
    "r": 8,
    "lora_alpha": 16,
    "target_modules": ["q_proj"],
    "base_model_name_or_path": "../checkpoint",
}


def read_header(path: Path) -> tuple[Json, int]:
    """The header of a safetensors file, and the number of bytes after it."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length)), path.stat().st_size - 8 - length


def read_checkpoint(root: Path) -> None:
    from qwen3vl_export.exporter.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(str(root))
    _ = checkpoint.facts, checkpoint.warnings, checkpoint.settings, checkpoint.tensors, checkpoint.tied
    checkpoint.provenance()


class Checkpoints(Target):
    name, inputs = "checkpoints", 200

    def __init__(self, artifact: Path) -> None:
        super().__init__(artifact)
        self.values: dict[str, Json] = {
            name: json.loads((TINY / name).read_text("utf-8")) if (TINY / name).exists() else {} for name in FILES
        }
        names = sorted(read_header(TINY / SINGLE)[0])
        self.values[INDEX] = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names[:20], SINGLE)}
        self.values[ADAPTER_CONFIG] = ADAPTER

    def make(self, random: Random) -> bytes:
        name = random.choice(FILES)
        value = self.values[name]
        if name == "config.json" and random.random() < 0.3:
            value = {**value, "quantization_config": random.choice(QUANTIZATIONS)}
        return named(name, dump(random, mutate_value(random, value)))

    def open(self, box: Path) -> Callable[[bytes], object]:
        root = box / "checkpoint"
        shutil.copytree(TINY, root, ignore=shutil.ignore_patterns("LICENSE"))
        read_checkpoint(root)
        sharded = box / "sharded"  # an index is read only where there is no single file
        shutil.copytree(root, sharded, ignore=shutil.ignore_patterns(SINGLE))
        os.link(root / SINGLE, sharded / "weights.safetensors")

        adapter = box / "adapter"
        adapter.mkdir()
        os.link(root / SINGLE, adapter / "adapter_model.safetensors")
        directories = {INDEX: sharded, ADAPTER_CONFIG: adapter}

        def read(data: bytes) -> None:
            name, content = split_name(data)
            directory = directories.get(name, root)
            with replaced(directory / name, content.replace(b'"model.safetensors"', b'"weights.safetensors"')):
                read_checkpoint(directory)

        return read


class Weights(Target):
    name, inputs = "weights", 120

    def __init__(self, artifact: Path) -> None:
        super().__init__(artifact)
        self.header, self.bytes = read_header(TINY / SINGLE)

    def make(self, random: Random) -> bytes:
        header = dump(random, mutate_value(random, self.header))
        if random.random() < 0.1:
            header = mutate_bytes(random, header)
        length = len(header)
        if random.random() < 0.1:
            length = random.choice((0, 1, length - 1, length + 1, 10**8, 2**31, 2**63, 2**64 - 1))
        return struct.pack("<Q", max(length, 0)) + header

    def open(self, box: Path) -> Callable[[bytes], object]:
        root = box / "checkpoint"
        shutil.copytree(TINY, root, ignore=shutil.ignore_patterns("LICENSE"))
        read_checkpoint(root)

        def read(data: bytes) -> None:
            path = root / SINGLE
            path.write_bytes(data)
            os.truncate(path, len(data) + self.bytes)
            read_checkpoint(root)

        return read
