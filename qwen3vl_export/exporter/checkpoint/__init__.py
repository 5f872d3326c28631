"""A Qwen3-VL checkpoint on disk: its config, its facts and its tensors, read one at a time or in parts.

Opens a local directory or a Hugging Face repository at a pinned revision. Weights are never loaded whole: the index is
read from the safetensors headers, and `read` fetches one tensor or some rows of it. Whatever the files' layout, tensors
appear as transformers' modules hold them. Knows nothing about graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ...contract import RERANKER, Facts
from ...errors import CheckpointError
from ...hash_cache import sha256_file
from ...hub import REPOSITORY, SCHEME, download
from .adapter import Adapter, find_base, is_adapter, merge_adapters, read_adapter
from .adapter.config import CONFIG as ADAPTER
from .adapter.merge import Weights
from .config import Config, read_config
from .experts import orient_experts, stack_experts
from .files import INDEX, MODULES, SETTINGS, StoredWeights, check_settings_files, files_read, stored_weights
from .formats import find_settings, restore_tensors
from .formats.settings import QuantizationConfig
from .heads import add_score, told_head
from .ignored import warn_of_ignored
from .licence import CARD, declared_licence, licence_files
from .location import locate
from .names import HEAD, TABLE, rename_tensors
from .placeholders import refuse_placeholders
from .rotary import context_length
from .settings import Settings, read_settings
from .tensors import Allocator, TensorReader, allocate_anew, equal_values


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; `open_checkpoint` makes one.

    Attributes:
        root: directory of the files.
        source: the repository id, or the directory's name.
        revision: commit of the repository, or "local".
        config: the parsed `config.json`.
        adapters: merged into the tensors as they are read, in this order.
        chosen_head: what its last hidden states are for, of `contract.HEADS`; None: as its files tell.
    """

    root: Path
    source: str
    revision: str
    config: Config
    adapters: tuple[Adapter, ...] = ()
    chosen_head: str | None = None

    @cached_property
    def facts(self) -> Facts:
        """The numbers that fix every graph's shapes."""
        text, vision = self.config.text_config, self.config.vision_config
        return Facts(
            model_type=self.config.model_type,
            hidden_size=text.hidden_size,
            num_hidden_layers=text.num_hidden_layers,
            num_attention_heads=text.num_attention_heads,
            num_key_value_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            vocab_size=text.vocab_size,
            max_position_embeddings=context_length(text),
            num_deepstack=len(vision.deepstack_visual_indexes),
            in_channels=vision.in_channels,
            patch_size=vision.patch_size,
            temporal_patch_size=vision.temporal_patch_size,
            spatial_merge_size=vision.spatial_merge_size,
            image_token_id=self.config.image_token_id,
            video_token_id=self.config.video_token_id,
            vision_start_token_id=self.config.vision_start_token_id,
            vision_end_token_id=self.config.vision_end_token_id,
            head=self.chosen_head or told_head(self.root, self.config),
        )

    @property
    def warnings(self) -> list[str]:
        """What its settings say that has no effect, one line each."""
        return list(warn_of_ignored(self.config))

    @property
    def quantization(self) -> QuantizationConfig | None:
        """How its weights are quantized; None if they are not."""
        return find_settings(self.root / "config.json", self.config.to_dict())

    @cached_property
    def stored(self) -> StoredWeights:
        """Every tensor of every file, under its name there, from the headers alone.

        Raises:
            CheckpointError: a file is missing or is not a safetensors file.
        """
        return stored_weights(self.root)

    @cached_property
    def base(self) -> Checkpoint:
        """The checkpoint without its adapters."""
        return replace(self, adapters=()) if self.adapters else self

    def adapted(self, adapters: Sequence[Adapter]) -> Checkpoint:
        """The checkpoint with further adapters, merged after those that it has."""
        return replace(self, adapters=(*self.adapters, *adapters))

    @cached_property
    def tensors(self) -> dict[str, TensorReader]:
        """Every tensor, under the name and in the shape that transformers' model gives it, from the headers alone, with
        the adapters merged in; of a reranker also `SCORE`, two rows of its head.

        With adapters, a tied head is compared with the table first, as in `tied`.

        Raises:
            CheckpointError: a file is missing or is not a safetensors file, two tensors are the same parameter, a
                matrix of an expert is missing, weights are quantized in a way that cannot be read, or an adapter does
                not fit; or as `add_score`.
        """
        tensors = self._merged.tensors if self.adapters else self._restored
        return add_score(tensors, self.tied, self.root, self.facts) if self.facts.head == RERANKER else tensors

    @cached_property
    def tied(self) -> bool:
        """Whether the output head is the token table.

        A head that is stored beside the table and has other values is a head of its own whatever config.json says:
        both are read and compared. Source: transformers `PreTrainedModel.tie_weights`. So is one that an adapter
        changes without the table, or the other way round.

        Raises:
            CheckpointError: as `tensors`.
        """
        if self.adapters:
            return self._merged.tied
        if not self.config.tie_word_embeddings:
            return False
        table, head = self._restored.get(TABLE), self._restored.get(HEAD)
        return table is None or head is None or table is head or equal_values(table, head)

    @cached_property
    def _restored(self) -> dict[str, TensorReader]:
        """The tensors without adapters."""
        restored = restore_tensors(self.stored.tensors, self.quantization)
        names = rename_tensors(restored, self.config.model_type, str(self.root))
        readers = {name: restored[stored_name] for name, stored_name in names.items()}
        tensors = orient_experts(stack_experts(readers, self.config), self.config)
        if self.config.tie_word_embeddings and TABLE not in tensors and HEAD in tensors:
            tensors[TABLE] = tensors[HEAD]
        return tensors

    @cached_property
    def _merged(self) -> Weights:
        """The tensors with the adapters, and whether the head is still the table."""
        weights = Weights(self.base._restored, self.base.tied, bool(self.config.tie_word_embeddings))
        return merge_adapters(self.adapters, weights, self.config)

    def read(self, name: str, rows: slice | None = None, allocate: Allocator | None = None) -> torch.Tensor:
        """One tensor, not necessarily contiguous, in the dtype of its reader.

        Args:
            rows: read only these of its first axis, e.g. the experts `slice(3, 4)`.
            allocate: returns the memory to read into; default `torch.empty`.

        Raises:
            CheckpointError: the file has become shorter.
        """
        tensor = self.tensors[name]
        start, stop, _ = (rows or slice(None)).indices(tensor.shape[0] if tensor.shape else 0)
        return tensor.read(slice(start, stop), allocate or allocate_anew)

    def provenance(self) -> dict[str, Any]:
        """Source, revision and sha256 of every file that transformers would read, by its path in the directory; the
        declared licence, if there is no file; the same of each adapter."""
        licence = {} if self.licences else declared_licence(self.root)
        return {
            "source": self.source,
            "revision": self.revision,
            "files": {file.relative_to(self.root).as_posix(): sha256_file(file) for file in files_read(self.root)},
            **({"licence": licence} if licence else {}),
            **({"adapters": [adapter.provenance() for adapter in self.adapters]} if self.adapters else {}),
        }

    @property
    def files(self) -> list[Path]:
        """Every file that transformers and PEFT read, whether a build does or not: settings, weights, adapters."""
        return [*files_read(self.root), *(file for adapter in self.adapters for file in adapter.files)]

    @cached_property
    def settings(self) -> Settings:
        """What transformers reads from its config, tokenizer, template and processor files.

        Raises:
            CheckpointError: settings that cannot be read, that contradict the model, or that no runtime follows.
        """
        return read_settings(self.root, self.facts)

    @property
    def licences(self) -> list[Path]:
        """Its licence files."""
        return licence_files(self.root)


def open_checkpoint(source: str, revision: str = "main", name: str = "") -> Checkpoint:
    """Open a directory, or download a repository at `revision`; of an adapter, what it was trained on, adapted.

    Args:
        source: path of a directory, `org/name[@revision]`, or `hf://org/name[@revision]`.
        revision: branch, tag or commit; ignored for a directory.
        name: what the manifest calls a directory; default its last name, so that no machine's paths are recorded.

    Raises:
        CheckpointError: not found, no network, a config that is not exported (`read_config`), or an adapter beside
            weights, or without a base.
    """
    return _open_source(source, revision, name)


def open_repository(repository: str, revision: str = "main") -> Checkpoint:
    """Download a repository of the Hub, or find it in the cache.

    Args:
        repository: `org/name`.

    Raises:
        CheckpointError: no such repository or revision, no network, or as `open_checkpoint`.
    """
    return _open_source(f"{SCHEME}{repository}", revision)


def _open_source(source: str, revision: str, name: str = "", trained: frozenset[Path] = frozenset()) -> Checkpoint:
    """As `open_checkpoint`; `trained` are the adapters that were trained on this source, one on another."""
    location = locate(source, "checkpoint", revision)
    if isinstance(location, Path):
        root, name, commit = location, name or location.name, "local"
    else:
        name, revision = location
        if not REPOSITORY.fullmatch(name):
            raise CheckpointError(f"{SCHEME}{name}: is not the name of a repository", f"Write {SCHEME}OWNER/NAME")
        wanted = [*SETTINGS, MODULES, ADAPTER, "*.safetensors", INDEX]
        root, commit = download(name, revision, wanted, ["LICENSE*", CARD])
    return _open(root, name, commit, trained)


def _open(root: Path, source: str, revision: str, trained: frozenset[Path]) -> Checkpoint:
    if root in trained:
        raise CheckpointError(f"{root}: adapters that name each other as their base", "Pass --checkpoint BASE")
    if is_adapter(root):
        adapter = read_adapter(root, source, revision)
        base, base_revision = find_base(adapter)
        return _open_source(base, base_revision, trained=trained | {root}).adapted([adapter])
    refuse_placeholders([root / name for name in (*SETTINGS, INDEX, MODULES)])
    refuse_placeholders(sorted(root.glob("*.safetensors")))
    check_settings_files(root)
    return Checkpoint(root, source, revision, read_config(root))
