"""What a target is, and what several of them need: files that are replaced for one input, and pictures."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import ClassVar

import PIL.Image


class Target(ABC):
    """One kind of hostile input.

    Attributes:
        inputs: how many are tried in CI.
        seconds: of CPU time, of all threads, that one input may take.
        megabytes: that one input may add to the resident memory.
        confined: whether nothing outside the directory may be read; false where the input is its reader's own words.
    """

    name: ClassVar[str]
    inputs: ClassVar[int]
    seconds: ClassVar[float] = 2.0
    megabytes: ClassVar[float] = 500
    confined: ClassVar[bool] = True

    def __init__(self, artifact: Path) -> None:
        """`artifact` is the one of recipes/tiny.yaml; it is only read."""
        self.artifact = artifact

    @abstractmethod
    def make(self, random: Random) -> bytes:
        """An input, as the content of a file; a function of `random` and the artifact alone."""

    @abstractmethod
    def open(self, box: Path) -> Callable[[bytes], object]:
        """In the process that tries inputs: what reads one, and works or raises. `box` is an empty directory."""


@contextmanager
def replaced(path: Path, content: bytes) -> Iterator[None]:
    """The file with another content for a while."""
    original = path.read_bytes() if path.exists() else None
    path.write_bytes(content)
    try:
        yield
    finally:
        if original is None:
            path.unlink()
        else:
            path.write_bytes(original)


def named(name: str, content: bytes) -> bytes:
    """An input that is one file of several: its name, a line break, its content."""
    return name.encode() + b"\n" + content


def split_name(data: bytes) -> tuple[str, bytes]:
    """The parts of an input that `named` made."""
    name, _, content = data.partition(b"\n")
    return name.decode(), content


def picture_file(format: str, mode: str = "RGB", size: tuple[int, int] = (40, 30), **options: object) -> bytes:
    """A small picture with a gradient."""
    buffer = io.BytesIO()
    gradient = PIL.Image.linear_gradient("L").resize(size)
    PIL.Image.merge("RGB", [gradient] * 3).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()
