"""The names of the sides of `bench.py`, and for each how it is made and loaded.

A side is a precision of ours, `genai:PRECISION` for its artifact in onnxruntime-genai, `transformers`, or another peer.
Whatever follows an `@` only tells sides apart: `int4@before` is `int4`, with another interpreter or checkout.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from decoder_models import CHECKPOINT, make_ours, precision_names
from decoder_sides import Ours, Side, Transformers
from peer_models import MAKERS
from peer_sides import Genai, GenaiPictures, LlamaCpp, OpenVino, OpenVinoGenai

IN_GENAI = "genai:"
TRANSFORMERS = "transformers"
PEERS: dict[str, Callable[[Path, int, int], Side]] = {
    "genai": Genai,
    "llama.cpp": LlamaCpp,
    "openvino": OpenVino,
    "openvino-genai": OpenVinoGenai,
}
NAMES = [*precision_names(), f"{IN_GENAI}int4", TRANSFORMERS, *PEERS]


def kind_of(side: str) -> str:
    """What a side is, without that which tells it apart."""
    return side.partition("@")[0]


def is_side(name: str) -> bool:
    """Whether there is such a side."""
    kind = kind_of(name)
    return kind in NAMES or (kind.startswith(IN_GENAI) and kind.removeprefix(IN_GENAI) in precision_names())


def is_ours(name: str) -> bool:
    """Whether it is our runtime on our artifact."""
    return kind_of(name) in precision_names()


def make_side(name: str, work: Path) -> None:
    """The model of a side in the work directory; one of several sides that share it is enough.

    Raises:
        Exception: whatever keeps it from being made.
    """
    kind = kind_of(name)
    if kind in MAKERS:
        MAKERS[kind](work)
    elif kind.startswith(IN_GENAI):
        precision = kind.removeprefix(IN_GENAI)
        if not (work / precision).exists():
            make_ours(work, precision, precision)
    elif kind != TRANSFORMERS and not (work / name).exists():
        make_ours(work, name, kind)


def load_side(name: str, work: Path, threads: int, room: int) -> Side:
    """The model of a side, ready.

    Args:
        room: tokens of a prompt and its answer.
    """
    kind = kind_of(name)
    if kind == TRANSFORMERS:
        return Transformers(work / CHECKPOINT, threads, room)
    if kind.startswith(IN_GENAI):
        return GenaiPictures(work / kind.removeprefix(IN_GENAI), threads, room)
    if kind in PEERS:
        return PEERS[kind](work / kind, threads, room)
    return Ours(work / name, threads, room)
