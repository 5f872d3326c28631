"""Errors a user can cause, each one line: what is wrong, where, and what to do next.

The command line prints `str(error)` and exits with `error.exit_code`; it never shows a traceback for these.
Any other exception is an accident of the machine or a bug: `cli/errors.py`. Knows nothing about who raises.
"""

from __future__ import annotations

import re

ERROR_NUMBER = re.compile(r"\[Errno (\d+)\]|os error (\d+)")  # in messages of `shutil.Error`, and of Rust libraries
LINE_BREAK = re.compile("[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")  # where `str.splitlines` splits
LONGEST = 300  # characters of another package's message in a line of ours
LONGEST_TEXT = 800  # characters of what is wrong, and of what to do next


class Qwen3VLExportError(Exception):
    """Base class of every error caused by the user's input or machine.

    Both texts may quote a stranger's file: line breaks become escapes, and the middle of a long text is left out.

    Args:
        what: what is wrong and where: `"recipes/x.yaml: vision.gird: unknown key"`.
        next: what to do about it: `"Did you mean grid?"`. Appended to `what` as a second sentence.
    """

    exit_code = 2

    def __init__(self, what: str, next: str = "") -> None:
        self.what = to_line(what)
        self.next = to_line(next)
        super().__init__(f"{self.what.rstrip('.')}. {self.next}" if next else self.what)


def to_line(text: str) -> str:
    """Text as one line of at most `LONGEST_TEXT` characters before its escapes."""
    if len(text) > LONGEST_TEXT:
        half = (LONGEST_TEXT - 1) // 2
        text = f"{text[:half]}…{text[-half:]}"
    return LINE_BREAK.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, as far as it helps; its class where the message is empty."""
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def is_panic(error: BaseException) -> bool:
    """Whether Rust code panicked: tokenizers and safetensors then raise a `PanicException`, which is no `Exception`."""
    return type(error).__name__ == "PanicException"


def os_reason(error: OSError | ValueError) -> str:
    """Why the operating system refused: `No space left on device`; a `ValueError` is about a name no file can have."""
    return getattr(error, "strerror", None) or first_line(error)


def errno_of(error: BaseException) -> int | None:
    """The operating system's number of an error, also of one that only its message tells."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    match = ERROR_NUMBER.search(str(error))
    return int(match[1] or match[2]) if match else None


class RecipeError(Qwen3VLExportError):
    """A recipe that cannot be read or that asks for the impossible."""


class CheckpointError(Qwen3VLExportError):
    """A checkpoint that is missing, of another architecture, or whose tensors are not the expected ones."""


class BuildError(Qwen3VLExportError):
    """A build that cannot continue: output directory taken, disk full, a graph that fails its checks."""


class SpaceError(BuildError):
    """A disk with too little free space."""


class ArtifactError(Qwen3VLExportError):
    """An artifact directory that is incomplete, altered or too new for this onnxruntime."""


class InputError(Qwen3VLExportError):
    """A picture, prompt or option the model cannot take."""


class PublishError(Qwen3VLExportError):
    """An artifact that cannot be published or fetched: licence, name, permission, network, or a file that differs."""


class FleetError(Qwen3VLExportError):
    """A fleet that cannot run: its store, scheduler or workers are missing, too small, full, or differ in version."""


class FleetStopped(FleetError):
    """A fleet whose scheduler or workers were lost and did not return. Finished results are in its store."""


class ParityError(Qwen3VLExportError):
    """A verification that cannot be carried out: no such tier, case or profile, or parts that do not fit together."""


class UnprovenError(ParityError):
    """An artifact whose evidence is missing, failed, incomplete, or of another build."""

    exit_code = 1
