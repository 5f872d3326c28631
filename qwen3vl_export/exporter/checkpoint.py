"""A Qwen3-VL checkpoint on disk: its config, its facts and its tensors, read one at a time or in parts.

Opens a local directory or a Hugging Face repository at a pinned revision. Weights are never loaded whole: the index is
read from the safetensors headers, and `read` fetches one tensor or some rows of it. Whatever the files' layout, tensors
appear as transformers' modules hold them. Knows nothing about graphs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import Qwen3VLConfig, Qwen3VLMoeConfig

from ..artifact import CHECKPOINT_FILES
from ..contract import Facts
from ..errors import CheckpointError
from ..hash_cache import sha256_file
from ..hub import download
from .safetensors_file import StoredTensor, stored_tensors

CONFIGS = {"qwen3_vl": Qwen3VLConfig, "qwen3_vl_moe": Qwen3VLMoeConfig}  # by model_type
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PREFIXES = {  # of a submodule's parameters -> of the checkpoint's tensors
    "visual.": "model.visual.",
    "language_model.": "model.language_model.",
    "embed_tokens.": "model.language_model.embed_tokens.",
    "lm_head.": "lm_head.",
}


class Allocator(Protocol):
    """Allocates memory to read a tensor into, like `torch.empty`."""

    def __call__(self, shape: tuple[int, ...], *, dtype: torch.dtype) -> torch.Tensor: ...


@dataclass(frozen=True)
class TensorEntry:
    """One tensor: where it is stored, and its shape in transformers' modules.

    `transposed`: the file stores its last two axes in the opposite order.
    """

    stored: StoredTensor
    shape: tuple[int, ...]
    transposed: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; `open_checkpoint` makes one.

    Attributes:
        root: directory of the files.
        source: the repository id, or the directory's name.
        revision: commit of the repository, or "local".
        config: the parsed `config.json`.
    """

    root: Path
    source: str
    revision: str
    config: Qwen3VLConfig | Qwen3VLMoeConfig

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
            max_position_embeddings=text.max_position_embeddings,
            num_deepstack=len(vision.deepstack_visual_indexes),
            in_channels=vision.in_channels,
            patch_size=vision.patch_size,
            temporal_patch_size=vision.temporal_patch_size,
            spatial_merge_size=vision.spatial_merge_size,
            image_token_id=self.config.image_token_id,
            video_token_id=self.config.video_token_id,
            vision_start_token_id=self.config.vision_start_token_id,
            vision_end_token_id=self.config.vision_end_token_id,
        )

    @cached_property
    def tensors(self) -> dict[str, TensorEntry]:
        """Every tensor of every shard, from the headers alone.

        Raises:
            CheckpointError: a shard is missing or is not a safetensors file.
        """
        return {
            name: self._entry(name, stored) for file in self._shards() for name, stored in stored_tensors(file).items()
        }

    def _entry(self, name: str, stored: StoredTensor) -> TensorEntry:
        """A tensor as the architecture has it.

        The published files hold experts as [E, H, 2 * I] and [E, I, H]; transformers 5 holds and saves them as
        `torch.nn.Linear` would, [E, 2 * I, H] and [E, H, I]. Both are read. They are distinguished by shape; a shape
        that fits both counts as the latter, all as in transformers' `from_pretrained`.
        Source: transformers `conversion_mapping`, "qwen3_vl_moe".
        """
        module, _, parameter = name.rpartition(".")
        if module.endswith(".mlp.experts") and isinstance(self.config, Qwen3VLMoeConfig):
            text = self.config.text_config
            hidden, inner = text.hidden_size, text.moe_intermediate_size
            matrix = {"gate_up_proj": (2 * inner, hidden), "down_proj": (hidden, inner)}.get(parameter)
            if matrix is not None and stored.shape[1:] == matrix[::-1] != matrix:
                return TensorEntry(stored, (stored.shape[0], *matrix), transposed=True)
        return TensorEntry(stored, stored.shape)

    def _shards(self) -> list[Path]:
        index = self.root / INDEX
        names = [SINGLE]
        if index.is_file():
            try:
                names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(f"{index}: not a safetensors index ({error})", "Download it again") from error
        for name in names:
            if not (self.root / name).is_file():
                raise CheckpointError(f"{self.root}: {name} is missing", "Download the checkpoint again")
        return [self.root / name for name in names]

    def read(self, name: str, rows: slice | None = None, allocate: Allocator | None = None) -> torch.Tensor:
        """One tensor in its stored dtype; not necessarily contiguous.

        Args:
            rows: read only these of its first axis, e.g. the experts `slice(3, 4)`.
            allocate: returns the memory to read into; default `torch.empty`.

        Raises:
            CheckpointError: the file has become shorter.
        """
        entry = self.tensors[name]
        full_shape = entry.stored.shape
        start, stop, _ = (rows or slice(None)).indices(full_shape[0]) if full_shape else (0, 0, 1)
        shape = (stop - start, *full_shape[1:]) if full_shape else full_shape
        memory = (allocate or torch.empty)(shape, dtype=entry.stored.dtype)
        tensor = entry.stored.read(slice(start, stop), memory)
        return tensor.transpose(-1, -2) if entry.transposed else tensor

    def provenance(self) -> dict[str, Any]:
        """Source, revision and sha256 of every file that a build reads."""
        return {
            "source": self.source,
            "revision": self.revision,
            "files": {file.name: sha256_file(file) for file in self.files},
        }

    @property
    def files(self) -> list[Path]:
        """Every file that a build reads: settings, then weights."""
        return self.settings + self._shards()

    @property
    def settings(self) -> list[Path]:
        """Its config, tokenizer, template and processor files, those that exist."""
        return [self.root / name for name in CHECKPOINT_FILES if (self.root / name).is_file()]

    @property
    def licences(self) -> list[Path]:
        """Its licence files."""
        return sorted(self.root.glob("LICENSE*"))


def open_checkpoint(source: str, revision: str = "main", name: str = "") -> Checkpoint:
    """Open a directory, or download a repository at `revision`.

    Args:
        source: path of a directory, or `org/name`.
        revision: branch, tag or commit; ignored for a directory.
        name: what the manifest calls a directory; default its last name, so that no machine's paths are recorded.

    Raises:
        CheckpointError: not found, no network, another architecture, or a config without rotary settings.
    """
    local = Path(source).expanduser()
    if local.is_dir():
        return Checkpoint(local.resolve(), name or local.resolve().name, "local", _read_config(local))
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise CheckpointError(f"{local}: no such checkpoint directory", "Give a directory, or a repository as org/name")
    root, commit = download(source, revision, [*CHECKPOINT_FILES, "*.safetensors", INDEX, "LICENSE*"])
    return Checkpoint(root, source, commit, _read_config(root))


def _read_config(root: Path) -> Qwen3VLConfig | Qwen3VLMoeConfig:
    path = root / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{root}: no config.json here", "Point to the directory of a Qwen3-VL checkpoint")
    try:
        raw = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})", "Download the checkpoint again") from error
    model_type = raw.get("model_type")
    if model_type not in CONFIGS:
        raise CheckpointError(
            f"{path}: model_type is {model_type!r}, this tool exports {' and '.join(CONFIGS)}",
            "Use a Qwen3-VL checkpoint",
        )
    text = raw.get("text_config", {})
    if model_type == "qwen3_vl_moe" and text.get("hidden_act") != "silu":
        raise CheckpointError(
            f"{path}: text_config.hidden_act is {text.get('hidden_act')!r}, experts are exported with 'silu' only",
            "Use a Qwen3-VL checkpoint",
        )
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    theta = rope.get("rope_theta", text.get("rope_theta"))
    if "mrope_section" not in rope or theta is None:
        raise CheckpointError(
            f"{path}: text_config says no rope_theta or mrope_section; a default would be silently wrong",
            "Take config.json from the published checkpoint",
        )
    config = CONFIGS[model_type].from_dict(raw)
    if config.text_config.rope_parameters.get("rope_theta") != theta:
        raise CheckpointError(f"{path}: rope_theta {theta} was not understood", "Check text_config.rope_parameters")
    return config


def checkpoint_name(parameter: str, tied: bool) -> str:
    """The checkpoint's name of a parameter: `visual.pos_embed.weight` -> `model.visual.pos_embed.weight`."""
    if tied and parameter == "lm_head.weight":
        return "model.language_model.embed_tokens.weight"
    for prefix, checkpoint_prefix in PREFIXES.items():
        if parameter.startswith(prefix):
            return checkpoint_prefix + parameter.removeprefix(prefix)
    raise AssertionError(f"{parameter}: no tensor of a checkpoint has this parameter")
