"""transformers' model with the weights of one module in memory: loaded before the module runs, dropped after it.

The modules and their forward passes are transformers' own, and so is what reads the checkpoint: its loader is given the
tensors of one module at a time, so that names, layouts and experts are converted as it converts them. Several calls of
the model go through the modules in step, so that each weight is read once for all of them. Knows transformers' model
and its loader; nothing about what is computed.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging

from qwen3vl_export.errors import ParityError
from qwen3vl_export.exporter.checkpoint.files import stored_weights
from qwen3vl_export.exporter.checkpoint.module_weights import set_weight, unload_weights

from ..lockstep import reach, run_in_step
from .adapters import untie
from .device import CPU

HEAD, TABLE = "lm_head", "model.language_model.embed_tokens"
LAYER = re.compile(r".*\.(?:blocks|layers)\.\d+")  # loaded as a whole: a block of the tower, a layer of the decoder

Result = TypeVar("Result")
Restore = Callable[[dict[str, Tensor]], dict[str, Tensor]]
Merge = Callable[[Any, Callable[[str], bool]], Any]
Change = Callable[[str, nn.Module], None]


class StreamedModel:
    """A model without weights, and the files they are read from.

    Args:
        model: transformers' model, every parameter on the meta device, its buffers computed. Called in a computation of
            `run`, its modules have their weights when they run.
        checkpoint: directory with safetensors files.
        restore: turns a module's stored tensors into those that transformers loads; None if it loads them as stored.
        merge: takes a copy of the model, one module of which has weights, and whether a name belongs to that module;
            returns the model with the checkpoint's adapters merged into it.
        change: is applied to each module once it is loaded, under its name.
        device: that a module is moved to once it is loaded.
        end: gives the model the output of its head; adapters are merged into the one it was trained with.

    Raises:
        ParityError: a module has no tensors in the checkpoint.
    """

    def __init__(
        self,
        model: Any,
        checkpoint: Path,
        restore: Restore | None = None,
        merge: Merge | None = None,
        change: Change | None = None,
        device: torch.device = CPU,
        end: Callable[[Any], Any] = lambda model: model,
    ) -> None:
        self._blank = copy.deepcopy(model) if merge is not None else None  # without the hooks
        self.model = model = end(model)
        self._device = device
        self._restore = restore
        self._merge = merge
        self._change = change
        self._resident = ""  # the module that `parameter` loaded last
        self._files = {name: tensor.file for name, tensor in stored_weights(checkpoint).tensors.items()}
        self._modules = dict(units_of(model))
        self._mapping = get_model_conversion_mapping(model)  # of the checkpoint's names and layouts to the model's
        self._keys = self._find_keys()
        self._tied = self._keys[HEAD] == self._keys[TABLE]
        for buffers in (module._buffers for module in model.modules()):
            buffers.update({name: buffer.to(device) for name, buffer in buffers.items() if buffer is not None})
        for name, module in self._modules.items():
            module.register_forward_pre_hook(lambda *_, name=name: self._arrive(name))

    def run(
        self, computations: Sequence[Callable[[], Result]], report: Callable[[str, int], None] = lambda *_: None
    ) -> list[Result]:
        """The results of computations that call the model, each in a thread of its own, module by module.

        Args:
            report: is told the name of each module that is loaded, and for how many computations.
        """
        self._keep("")
        order = {name: index for index, name in enumerate(self._modules)}
        return run_in_step(computations, order, self._loaded, report)

    def parameter(self, name: str) -> Tensor:
        """float32, by its name in the model; its module stays loaded until another one is needed."""
        self._keep(self.unit(name))
        value: Tensor = self.model.get_parameter(name)
        return value.detach()

    @contextmanager
    def _loaded(self, name: str) -> Iterator[None]:
        """Inside, one module has its weights."""
        self._load(name)
        try:
            yield
        finally:
            unload_weights(self._modules[name])

    def _keep(self, name: str) -> None:
        """Load a module and unload the one that was loaded before."""
        if name != self._resident and self._resident:
            unload_weights(self._modules[self._resident])
        if name != self._resident and name:
            self._load(name)
        self._resident = name

    def unit(self, parameter: str) -> str:
        """The name of the module that is loaded for a parameter, by the parameter's name."""
        name = self._find_unit(parameter)
        if name is None:
            raise KeyError(parameter)
        return name

    def _find_unit(self, parameter: str) -> str | None:
        name = parameter
        while name and name not in self._modules:
            name = name.rpartition(".")[0]
        return name or None

    def _arrive(self, name: str) -> None:
        if not reach(name):
            raise RuntimeError(f"{name} has no weights: the model is called outside StreamedModel.run")

    def _find_keys(self) -> dict[str, list[str]]:
        """The checkpoint's names of each module's tensors."""
        renamings = [entry for entry in self._mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in self._mapping if isinstance(entry, WeightConverter)]
        prefix, parameters = self.model.base_model_prefix, self.model.state_dict()
        keys: defaultdict[str, list[str]] = defaultdict(list)
        for key in self._files:
            name, _ = rename_source_key(key, renamings, converters, prefix, parameters)
            unit = self._find_unit(name) or self._find_unit(f"{prefix}.{name}")  # a weight's parts are no parameters
            if unit is not None:
                keys[unit].append(key)
        if HEAD not in keys:  # the token table is the head
            keys[HEAD] = keys[TABLE]
        if missing := [name for name in self._modules if name not in keys]:
            raise ParityError(f"the checkpoint has no tensor of {missing[0]}", "Save or download it again")
        return dict(keys)

    def _load(self, name: str) -> None:
        """Read a module's weights, in float32, as transformers loads them, and merge the adapters into them."""
        module = self._modules[name]
        if self._merge is not None:
            give_weights(self._merged(name).get_submodule(name), module)
        elif name == HEAD and self._tied:
            self._fill(self.model, TABLE)
            give_weights(self._modules[TABLE], module)
        else:
            self._fill(self.model, name)
        absent = [parameter for parameter, value in module.named_parameters() if value.is_meta]
        if absent:
            raise ParityError(f"the checkpoint has no tensor {name}.{absent[0]}", "Save or download it again")
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        if self._change is not None:
            self._change(name, module)
        module.to(self._device)

    def _merged(self, name: str) -> Any:
        """A copy of the model with the adapters merged into one module; into table and head together where tied."""
        assert self._merge is not None
        model: Any = copy.deepcopy(self._blank)
        tied = self._tied and name in (HEAD, TABLE)
        self._fill(model, TABLE if tied else name)
        if self._tied:
            model.get_output_embeddings().weight = model.get_input_embeddings().weight
        else:
            untie(model)
            model.config.tie_word_embeddings = False
        loaded = (HEAD, TABLE) if tied else (name,)
        return self._merge(model, lambda parameter: self._find_unit(parameter) in loaded)

    def _fill(self, model: Any, name: str) -> None:
        """Have transformers load the tensors of one module into a model."""
        with ExitStack() as stack:
            files = {file: stack.enter_context(safe_open(file, "pt")) for file in self._files_of(name)}
            if self._restore is None:
                state = {key: files[self._files[key]].get_slice(key) for key in self._keys[name]}
            else:
                state = self._restore({key: files[self._files[key]].get_tensor(key) for key in self._keys[name]})
            config = LoadStateDictConfig(dtype=torch.float32, weight_mapping=self._mapping)
            with without_progress_bar():
                convert_and_load_state_dict_in_model(model, state, config)

    def _files_of(self, name: str) -> set[Path]:
        return {self._files[key] for key in self._keys[name]}


def units_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that are loaded as a whole, by name and in order: layers, and outside of them what has parameters."""
    for name, module in model.named_modules():
        in_layer = LAYER.match(f"{name}.") is not None
        if LAYER.fullmatch(name) or (not in_layer and list(module.parameters(recurse=False))):
            yield name, module


def give_weights(source: nn.Module, target: nn.Module) -> None:
    """Move the weights of a module to another one of the same structure; the first is on the meta device afterwards."""
    for name, parameter in list(source.named_parameters()):
        set_weight(target, name, parameter)
    unload_weights(source)


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """Inside, transformers shows no progress bar: there would be one for each module."""
    active = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if active:
            logging.enable_progress_bar()
