"""What a checkpoint's last hidden states are for, as its files tell, and the rows of the head that a reranker reads.

sentence-transformers lists the modules of an embedding model or of a reranker in `modules.json`, and transformers' base
class, which has no output head, names itself in `config.json`. Nothing else tells them apart: a published reranker has
the configuration of a model that answers. A head that is missing from the files does not: it may be damage.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...contract import EMBEDDING, RERANKER, TEXT, Facts
from ...errors import CheckpointError
from .files import MODULES
from .names import HEAD, SCORE, TABLE
from .settings.tokens import load_tokenizer
from .tensors import RowsReader, TensorReader

MODULE_HEADS = {"Pooling": EMBEDDING, "LogitScore": RERANKER}  # by the class of a module of sentence-transformers
HEADLESS = ("Qwen3VLModel", "Qwen3VLMoeModel")
ANSWERS = ("yes", "no")  # tokens, in the order of the contract's logits
DOWNLOAD = "Download the checkpoint again"


def told_head(root: Path, config: Any) -> str:
    """The head that a checkpoint's files tell.

    Args:
        config: `Qwen3VLConfig` or `Qwen3VLMoeConfig`.

    Raises:
        CheckpointError: `modules.json` is no list of modules.
    """
    for kind in _module_classes(root / MODULES):
        if kind in MODULE_HEADS:
            return MODULE_HEADS[kind]
    return EMBEDDING if set(config.architectures or ()) & set(HEADLESS) else TEXT


def _module_classes(path: Path) -> list[str]:
    if not path.is_file():
        return []
    try:
        return [str(module["type"]).rpartition(".")[2] for module in json.loads(path.read_text("utf-8"))]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a list of modules ({error})", DOWNLOAD) from error


def add_score(tensors: Mapping[str, TensorReader], tied: bool, root: Path, facts: Facts) -> dict[str, TensorReader]:
    """The tensors with `SCORE`: the output head's rows of `yes` and `no`.

    Source: `get_binary_linear` of QwenLM/Qwen3-VL-Embedding, which subtracts the second from the first.

    Raises:
        CheckpointError: there is no output head, a score of another form, or no such token.
    """
    if SCORE in tensors:
        raise CheckpointError(
            f"{root}: has {SCORE}, a reranker is exported from the rows of {HEAD}", "Use the checkpoint it was made of"
        )
    name = TABLE if tied else HEAD
    if name not in tensors:
        raise CheckpointError(f"{root}: tensor {name} is missing, of which a reranker needs two rows", DOWNLOAD)
    vocabulary: dict[str, int] = load_tokenizer(root, facts).get_vocab()
    if missing := [token for token in ANSWERS if token not in vocabulary]:
        raise CheckpointError(f"{root}: the tokenizer has no token {missing[0]}", "Use the reranker's own tokenizer")
    return {**tensors, SCORE: RowsReader(tensors[name], tuple(vocabulary[token] for token in ANSWERS))}
