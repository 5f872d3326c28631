"""PyTorch's side of LoRA adapters: PEFT loads them and merges them, in the dtypes in which the checkpoint is stored.

A merge rounds to the dtype of the weight it changes, so that a float32 copy of bfloat16 weights would give another
model than the one people save and serve. Knows transformers' model and PEFT; nothing about artifacts.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qwen3vl_export.errors import ParityError
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.exporter.checkpoint.adapter import WEIGHTS
from qwen3vl_export.exporter.checkpoint.adapter.config import CONFIG
from qwen3vl_export.exporter.checkpoint.adapter.keys import PREFIX, rename_key
from qwen3vl_export.exporter.checkpoint.safetensors_file import stored_tensors


def import_peft() -> Any:
    """The package peft.

    Raises:
        ParityError: it is not installed.
    """
    try:
        import peft
    except ImportError:
        what = "the artifact has LoRA adapters, and peft, which loads them beside PyTorch, is not installed"
        raise ParityError(what, "Install it: pip install 'qwen3vl-export[lora]'") from None
    return peft


def merge_adapters(
    model: Any, checkpoint: Path, adapters: Sequence[Path], is_loaded: Callable[[str], bool] = lambda name: True
) -> Any:
    """A float32 model with adapters merged in the dtypes of the checkpoint's tensors, in the given order.

    The output head is untied for a merge: an adapter of one of two tied parameters was trained beside it, and must not
    change both. If both are equal afterwards, they are tied again, for PEFT treats the next adapter accordingly.

    Args:
        is_loaded: whether a parameter or a part of an adapter, by its name in the model, belongs to what has weights;
            all other parameters are on the meta device, and no more of an adapter is read than what is merged.

    Raises:
        ParityError: peft is not installed.
    """
    if not adapters:
        return model
    peft = import_peft()
    tensors = open_checkpoint(str(checkpoint)).tensors
    for name, parameter in model.named_parameters():
        if name in tensors:  # all but the output head of a checkpoint without one
            parameter.data = parameter.data.to(tensors[name].dtype)
    for adapter in adapters:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as directory:
            warnings.simplefilter("ignore")  # about tied weights: they are untied; and about what is not loaded
            copy = Path(directory)
            if not copy_with_current_names(adapter, copy, dict(model.named_modules()), is_loaded):
                continue
            tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
            adapted = peft.PeftModel.from_pretrained(model, copy)
            untie(adapted)
            model = adapted.merge_and_unload()
            head, table = model.get_output_embeddings(), model.get_input_embeddings()
            if tied and (head.weight.is_meta or torch.equal(head.weight, table.weight)):
                head.weight, model.config.tie_word_embeddings = table.weight, True
    return model.float()


def copy_with_current_names(
    adapter: Path, directory: Path, modules: dict[str, nn.Module], is_loaded: Callable[[str], bool]
) -> bool:
    """Copy an adapter, its tensors under the names that PEFT saves today: it ignores those it does not know.

    Tensors of what is not loaded are holes in the copy, which PEFT puts on the meta device unread. Whether there are
    any others.
    """
    shutil.copyfile(adapter / CONFIG, directory / CONFIG)
    tensors = stored_tensors(adapter / WEIGHTS)
    names = {rename_key(key, modules): key for key in tensors}
    with (adapter / WEIGHTS).open("rb") as source, (directory / WEIGHTS).open("wb") as target:
        header = json.loads(source.read(int.from_bytes(source.read(8), "little")))
        start = source.tell()
        text = json.dumps({name: header[key] for name, key in names.items()}).encode()
        text += b" " * (-len(text) % 8)  # keeps the tensors aligned
        target.write(len(text).to_bytes(8, "little") + text)
        target.truncate(target.tell() + (adapter / WEIGHTS).stat().st_size - start)
        moved = target.tell() - start
        loaded = [key for name, key in names.items() if is_loaded(name.removeprefix(PREFIX))]
        for key in loaded:
            source.seek(tensors[key].offset)
            target.seek(tensors[key].offset + moved)
            target.write(source.read(prod(tensors[key].shape) * tensors[key].dtype.itemsize))
    return bool(loaded)


def untie(model: nn.Module) -> None:
    """Give every module that shares a parameter with another one a copy of its own."""
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                module.register_parameter(name, nn.Parameter(parameter.detach().clone(), requires_grad=False))
            seen.add(id(parameter))
