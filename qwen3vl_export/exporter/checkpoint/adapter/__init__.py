"""PEFT's LoRA adapters: opened from a directory or the Hub, and merged into a checkpoint's tensors as they are read.

`config` reads the settings, `keys` the tensors' names, `targets` finds the modules that are meant, `readers` computes,
`merge` puts them together. Knows nothing about graphs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ....errors import CheckpointError
from ....hash_cache import sha256_file
from ....hub import REPOSITORY, SCHEME, download
from ..config import Config
from ..files import INDEX, SINGLE
from ..location import locate
from ..placeholders import refuse_placeholders
from ..safetensors_file import StoredTensor, stored_tensors
from .config import CONFIG, AdapterConfig, read_adapter_config
from .merge import Weights, merge
from .targets import modules_of

WEIGHTS = "adapter_model.safetensors"
FILES = (CONFIG, WEIGHTS)


@dataclass(frozen=True)
class Adapter:
    """An opened adapter; `open_adapter` makes one.

    Attributes:
        root: directory of its files.
        source: the repository id, or the directory's name.
        revision: commit of the repository, or "local".
    """

    root: Path
    source: str
    revision: str
    config: AdapterConfig

    @property
    def files(self) -> list[Path]:
        """The files that determine the merged weights."""
        return [self.root / name for name in FILES]

    def provenance(self) -> dict[str, Any]:
        """Source, revision and sha256 of its files."""
        files = {file.name: sha256_file(file) for file in self.files}
        return {"source": self.source, "revision": self.revision, "files": files}

    @cached_property
    def stored(self) -> dict[str, StoredTensor]:
        """Its tensors, from the header alone.

        Raises:
            CheckpointError: there are none, or the file cannot be read.
        """
        file = self.root / WEIGHTS
        if not file.is_file():
            is_pickled = (self.root / "adapter_model.bin").is_file()
            advice = "Load it with PEFT and save_pretrained() it" if is_pickled else "Download the adapter again"
            raise CheckpointError(f"{self.root}: {WEIGHTS} is missing", advice)
        return stored_tensors(file)


def is_adapter(root: Path) -> bool:
    """Whether a directory holds an adapter, and no base weights.

    Raises:
        CheckpointError: it holds both; transformers would add the adapter to the weights.
    """
    if not (root / CONFIG).exists():
        return False
    if any((root / name).exists() for name in (SINGLE, INDEX)):
        raise CheckpointError(
            f"{root}: {CONFIG} makes this a model with an adapter, which transformers would add to the weights",
            f"Move {CONFIG} and {WEIGHTS} to a directory of their own, and pass it with --adapter",
        )
    return True


def open_adapter(source: str, name: str = "") -> Adapter:
    """Open a directory, or download a repository.

    Args:
        source: path of a directory, `org/name[@revision]`, or `hf://org/name[@revision]`.
        name: what the manifest calls a directory; default its last name.

    Raises:
        CheckpointError: not found, no network, or the adapter is not plain LoRA.
    """
    location = locate(source, "adapter")
    if isinstance(location, Path):
        return read_adapter(location, name or location.name, "local")
    repository, revision = location
    if not REPOSITORY.fullmatch(repository):
        raise CheckpointError(f"{source}: is not the name of a repository", f"Write {SCHEME}OWNER/NAME")
    root, commit = download(repository, revision, FILES, option="--adapter")
    return read_adapter(root, repository, commit)


def read_adapter(root: Path, source: str, revision: str) -> Adapter:
    """The adapter in a directory.

    Raises:
        CheckpointError: a missing or broken file, or the adapter is not plain LoRA.
    """
    refuse_placeholders([root / name for name in FILES])
    adapter = Adapter(root, source, revision, read_adapter_config(root))
    _ = adapter.stored  # a missing or broken file is an error now
    return adapter


def find_base(adapter: Adapter) -> tuple[str, str]:
    """What an adapter was trained on, and its revision: a directory, relative to the adapter's or to the current one,
    or a repository.

    Raises:
        CheckpointError: the adapter does not say, or the directory is gone or is the adapter's own.
    """
    base, revision = adapter.config.base_model_name_or_path, adapter.config.revision or "main"
    for directory in (adapter.root, Path.cwd()):
        local = directory / os.path.expanduser(base)
        if base and os.path.isdir(local):
            if local.resolve() == adapter.root:
                break
            return str(local), revision
    if not REPOSITORY.fullmatch(base):
        raise CheckpointError(
            f"{adapter.root / CONFIG}: base_model_name_or_path is {base!r}, and no checkpoint is there",
            f"Pass --checkpoint BASE --adapter {adapter.root}",
        )
    return f"{SCHEME}{base}", revision


def merge_adapters(adapters: Sequence[Adapter], weights: Weights, config: Config) -> Weights:
    """The weights with adapters merged in, in the given order, each into the result of the one before.

    Raises:
        CheckpointError: an adapter does not fit the checkpoint.
    """
    modules = modules_of(config) if adapters else {}
    for adapter in adapters:
        weights = merge(adapter.root / WEIGHTS, adapter.config, adapter.stored, weights, modules)
    return weights
