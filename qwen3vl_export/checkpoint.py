"""A Qwen3-VL checkpoint on disk: its config, its facts and its tensors, read one at a time.

Finds a local directory or a Hugging Face repository at a pinned revision. Weights are never loaded whole: the index is
read from the safetensors headers and `read` maps one tensor. Knows nothing about graphs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import Qwen3VLConfig

from .artifact import CHECKPOINT_FILES
from .contract import Facts
from .errors import CheckpointError
from .hash_cache import sha256_file
from .hub import download

SUPPORTED = "qwen3_vl"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lives: its file and its shape."""

    file: Path
    shape: tuple[int, ...]


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
    config: Qwen3VLConfig

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
        entries: dict[str, TensorEntry] = {}
        for file in self._shards():
            try:
                with safe_open(file, framework="pt") as shard:
                    for name in shard.keys():  # noqa: SIM118 - a safetensors handle, not a dict
                        entries[name] = TensorEntry(file, tuple(shard.get_slice(name).get_shape()))
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{file}: not a readable safetensors file ({error})", "Download it again"
                ) from error
        return entries

    def _shards(self) -> list[Path]:
        index = self.root / INDEX
        if index.is_file():
            names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        else:
            names = [SINGLE]
        for name in names:
            if not (self.root / name).is_file():
                raise CheckpointError(f"{self.root}: {name} is missing", "Download the checkpoint again")
        return [self.root / name for name in names]

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """One tensor in its stored dtype, mapped from disk; need not be contiguous.

        Args:
            rows: read only these of its first axis, e.g. the experts `slice(3, 4)`.
        """
        entry = self.tensors[name]
        with safe_open(entry.file, framework="pt") as shard:
            tensor: torch.Tensor = shard.get_tensor(name) if rows is None else shard.get_slice(name)[rows]
        return tensor

    def provenance(self) -> dict[str, Any]:
        """Source, revision and sha256 of every file that a build reads."""
        files = [self.root / name for name in CHECKPOINT_FILES if (self.root / name).is_file()]
        files += self._shards()
        return {
            "source": self.source,
            "revision": self.revision,
            "files": {file.name: sha256_file(file) for file in files},
        }


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


def _read_config(root: Path) -> Qwen3VLConfig:
    path = root / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{root}: no config.json here", "Point to the directory of a Qwen3-VL checkpoint")
    try:
        raw = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})", "Download the checkpoint again") from error
    found = raw.get("model_type")
    if found != SUPPORTED:
        hint = (
            "Mixture-of-experts decoders are not supported yet"
            if found == "qwen3_vl_moe"
            else "Use a Qwen3-VL checkpoint"
        )
        raise CheckpointError(f"{path}: model_type is {found!r}, this tool exports {SUPPORTED!r}", hint)
    text = raw.get("text_config", {})
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    theta = rope.get("rope_theta", text.get("rope_theta"))
    if "mrope_section" not in rope or theta is None:
        raise CheckpointError(
            f"{path}: text_config says no rope_theta or mrope_section; a default would be silently wrong",
            "Take config.json from the published checkpoint",
        )
    config = Qwen3VLConfig.from_dict(raw)
    if config.text_config.rope_parameters.get("rope_theta") != theta:
        raise CheckpointError(f"{path}: rope_theta {theta} was not understood", "Check text_config.rope_parameters")
    return config
