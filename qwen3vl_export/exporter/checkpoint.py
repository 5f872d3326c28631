"""A Qwen3-VL checkpoint on disk: its config, its facts and its tensors, read one at a time or in parts.

Finds a local directory or a Hugging Face repository at a pinned revision. Weights are never loaded whole: the index is
read from the safetensors headers and `read` fetches one tensor, or some rows of it. Whatever layout the files have,
tensors are seen here as transformers' modules hold them. Knows nothing about graphs.
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
from .safetensors_file import Stored, stored_tensors

CONFIGS = {"qwen3_vl": Qwen3VLConfig, "qwen3_vl_moe": Qwen3VLMoeConfig}  # by model_type
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PREFIXES = {  # of a wrapper's parameters -> of the checkpoint's tensors
    "visual.": "model.visual.",
    "language_model.": "model.language_model.",
    "embed_tokens.": "model.language_model.embed_tokens.",
    "lm_head.": "lm_head.",
}


class Room(Protocol):
    """Memory for a tensor that is read."""

    def __call__(self, shape: tuple[int, ...], *, dtype: torch.dtype) -> torch.Tensor: ...


@dataclass(frozen=True)
class TensorEntry:
    """One tensor: where it is stored, and its shape as transformers' modules have it.

    `swapped`: in the file its last two axes stand in the other order.
    """

    stored: Stored
    shape: tuple[int, ...]
    swapped: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; `open_checkpoint` is the way to get one.

    Attributes:
        root: directory of the files.
        source: what the user named: a repository id, or the directory's name.
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
        found = {name: stored for file in self._shards() for name, stored in stored_tensors(file).items()}
        return {name: self._entry(name, stored) for name, stored in found.items()}

    def _entry(self, name: str, stored: Stored) -> TensorEntry:
        """A tensor as the architecture has it.

        The published files hold experts as [E, H, 2 * I] and [E, I, H]; transformers 5 holds and saves them as
        `torch.nn.Linear` would, [E, 2 * I, H] and [E, H, I]. Both are read, told apart by shape and, where a shape fits
        both, taken for the latter, all as transformers' `from_pretrained` does.
        Source: transformers `conversion_mapping`, "qwen3_vl_moe".
        """
        module, _, parameter = name.rpartition(".")
        if module.endswith(".mlp.experts") and isinstance(self.config, Qwen3VLMoeConfig):
            text = self.config.text_config
            hidden, inner = text.hidden_size, text.moe_intermediate_size
            wanted = {"gate_up_proj": (2 * inner, hidden), "down_proj": (hidden, inner)}.get(parameter)
            if wanted is not None and stored.shape[1:] == wanted[::-1] != wanted:
                return TensorEntry(stored, (stored.shape[0], *wanted), swapped=True)
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

    def read(self, name: str, rows: slice | None = None, room: Room | None = None) -> torch.Tensor:
        """One tensor in its stored dtype; need not be contiguous.

        Args:
            rows: read only these of its first axis, e.g. the experts `slice(3, 4)`.
            room: gives the memory to read into, for a shape and a dtype; memory of the tensor's own unless given.

        Raises:
            CheckpointError: the file has become shorter.
        """
        entry = self.tensors[name]
        whole = entry.stored.shape
        start, stop, _ = (rows or slice(None)).indices(whole[0]) if whole else (0, 0, 1)
        shape = (stop - start, *whole[1:]) if whole else whole
        into = (room or torch.empty)(shape, dtype=entry.stored.dtype)
        tensor = entry.stored.read(slice(start, stop), into)
        return tensor.transpose(-1, -2) if entry.swapped else tensor

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
        settings = [self.root / name for name in CHECKPOINT_FILES if (self.root / name).is_file()]
        return settings + self._shards()


def open_checkpoint(source: str, revision: str = "main", name: str = "") -> Checkpoint:
    """Open a directory, or download a repository at `revision`.

    Args:
        source: path of a directory, or `org/name`.
        revision: branch, tag or commit; ignored for a directory.
        name: what the manifest calls a directory; its last name unless given, so that no machine's paths are recorded.

    Raises:
        CheckpointError: nothing there, no network, another architecture, or a config that leaves rotary settings out.
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
    found = raw.get("model_type")
    if found not in CONFIGS:
        raise CheckpointError(
            f"{path}: model_type is {found!r}, this tool exports {' and '.join(CONFIGS)}", "Use a Qwen3-VL checkpoint"
        )
    text = raw.get("text_config", {})
    if found == "qwen3_vl_moe" and text.get("hidden_act") != "silu":
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
    config = CONFIGS[found].from_dict(raw)
    if config.text_config.rope_parameters.get("rope_theta") != theta:
        raise CheckpointError(f"{path}: rope_theta {theta} was not understood", "Check text_config.rope_parameters")
    return config


def checkpoint_name(parameter: str, tied: bool) -> str:
    """The checkpoint's name of a wrapper's parameter: `visual.pos_embed.weight` -> `model.visual.pos_embed.weight`."""
    if tied and parameter == "lm_head.weight":
        return "model.language_model.embed_tokens.weight"
    for ours, theirs in PREFIXES.items():
        if parameter.startswith(ours):
            return theirs + parameter[len(ours) :]
    raise AssertionError(f"{parameter} has no home in a checkpoint")
