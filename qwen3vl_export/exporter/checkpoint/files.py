"""Which files of a directory transformers reads, and which of them holds each tensor. Knows file names; nothing about
tensors' meaning."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ...artifact import lies_inside
from ...errors import CheckpointError
from ...json_form import shown
from ...output import is_file_name
from .safetensors_file import StoredTensor, stored_tensors

INDEX = "model.safetensors.index.json"
MODULES = "modules.json"  # of sentence-transformers
SINGLE = "model.safetensors"
SETTINGS = (  # what transformers reads of a model, its tokenizer and its processor, where it exists
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "processor_config.json",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)
MOST_FILES = 10_000  # of one checkpoint; the largest published one has 118
LARGEST_SETTINGS = 500_000_000  # bytes of a settings file or an index; the largest tokenizer takes 12 million
OTHER_FORMATS = {  # -> what to do
    ("pytorch_model*.bin",): "Convert it: load it with transformers and save it with model.save_pretrained(DIR)",
    ("*.pth", "*.pt", "*.gguf", "*.h5", "*.msgpack"): "Use the safetensors files of the checkpoint it was made from",
}


@dataclass(frozen=True)
class StoredWeights:
    """Every tensor of a checkpoint by its name in the files.

    Attributes:
        overruled: tensors that a later file stores again although the index names an earlier one: the later one's.
    """

    tensors: dict[str, StoredTensor]
    overruled: dict[str, StoredTensor] = field(default_factory=dict)


def weights_entry(root: Path) -> Path:
    """The file that says where a checkpoint's weights are: a safetensors file with all of them, or an index.

    Raises:
        CheckpointError: there is none.
    Source: transformers `modeling_utils._get_resolved_checkpoint_files`.
    """
    if os.path.isfile(root / SINGLE):
        return root / SINGLE
    if os.path.isfile(root / INDEX):
        return root / INDEX
    for patterns, advice in OTHER_FORMATS.items():
        if files := _files(root, patterns):
            raise CheckpointError(
                f"{root}: {SINGLE} is missing, {files[0].name} is in a format that is not read", advice
            )
    raise CheckpointError(
        f"{root}: {SINGLE} is missing", "Download the checkpoint again, or save it as safetensors if it never had any"
    )


def weight_files(root: Path) -> list[Path]:
    """The safetensors files with the weights, in the order in which transformers loads them.

    Raises:
        CheckpointError: one is missing or outside the directory, or the index cannot be read.
    """
    entry = weights_entry(root)
    files = [entry]
    if entry.suffix == ".json":
        files = [_inside(root, name, entry) for name in sorted(set(read_index(entry).values()))]
    for file in files:
        if not os.path.isfile(file):
            raise CheckpointError(f"{root}: {_name(root, file)} is missing", "Download the checkpoint again")
    return files


def read_index(path: Path) -> dict[str, str]:
    """The file that an index names for each tensor.

    Raises:
        CheckpointError: it is not a safetensors index.
    """
    try:
        weight_map = json.loads(path.read_text("utf-8"))["weight_map"]
        if not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
            raise TypeError("weight_map does not map tensors to files")
        if len(set(weight_map.values())) > MOST_FILES:
            raise ValueError(f"weight_map names over {MOST_FILES} files")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a safetensors index ({error})", "Download it again") from error
    return dict(weight_map)


def stored_weights(root: Path) -> StoredWeights:
    """Every tensor of every file, from the headers alone.

    A tensor that the index does not name, or names in another file, is read from where it is, as in transformers. Of
    one that several files store, the index decides; if it names none of them, the last one is read.

    Raises:
        CheckpointError: a file is missing, or is not a safetensors file.
    """
    entry = weights_entry(root)
    index = read_index(entry) if entry.suffix == ".json" else {}
    weights = StoredWeights({})
    for file in weight_files(root):
        for name, stored in stored_tensors(file).items():
            first = weights.tensors.get(name)
            if first is not None and index.get(name) == _name(root, first.file):
                weights.overruled[name] = stored
            else:
                weights.tensors[name] = stored
    return weights


def settings_files(root: Path) -> list[Path]:
    """The settings files that a checkpoint's directory has."""
    return _files(root, SETTINGS)


def files_read(root: Path) -> list[Path]:
    """Every file that a build reads: what transformers would, settings, then weights, and before them `MODULES`."""
    entry = weights_entry(root)
    return [
        *_files(root, (MODULES,)),
        *settings_files(root),
        *([entry] if entry.suffix == ".json" else []),
        *weight_files(root),
    ]


def check_settings_files(root: Path) -> None:
    """Refuse settings, which a build copies into the artifact, and an index that are links to files elsewhere, or too
    large to be read whole.

    Links of the Hub's cache are none of those, and weights may be stored on another disk.

    Raises:
        CheckpointError: one is.
    """
    for file in _files(root, (*SETTINGS, INDEX, MODULES)):
        if file.stat().st_size > LARGEST_SETTINGS:
            raise CheckpointError(f"{file}: over {LARGEST_SETTINGS} bytes", "Download the checkpoint again")
        if not lies_inside(root, _name(root, file), root):
            raise CheckpointError(f"{file}: is a link to a file outside the checkpoint's directory", "Copy it here")


def _files(root: Path, patterns: Sequence[str]) -> list[Path]:
    return [path for pattern in patterns for path in sorted(root.glob(pattern)) if path.is_file()]


def _name(root: Path, file: Path) -> str:
    return file.relative_to(root).as_posix()


def _inside(root: Path, name: str, source: Path) -> Path:
    """The file of this name in the directory; `source` is the file that names it."""
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or not is_file_name(name):
        raise CheckpointError(
            f"{source}: names {shown(name)}, which is no file inside the checkpoint's directory",
            "Download the checkpoint again",
        )
    return root / name
