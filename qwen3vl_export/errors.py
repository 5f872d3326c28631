"""Errors a user can cause, each one line: what is wrong, where, and what to do next.

The command line prints `str(error)` and exits with `error.exit_code`; it never shows a traceback for these.
Anything else that escapes is a bug of ours and keeps its traceback. Knows nothing about who raises.
"""

from __future__ import annotations


class Qwen3VLExportError(Exception):
    """Base of every error whose cause lies in the user's input or machine.

    Args:
        what: what is wrong, where: `"recipes/x.yaml: vision.gird: unknown key"`.
        next: what to do about it: `"Did you mean grid?"`. Joined to `what` as a second sentence.
    """

    exit_code = 2

    def __init__(self, what: str, next: str = "") -> None:
        self.what = what
        self.next = next
        super().__init__(f"{what.rstrip('.')}. {next}" if next else what)


class RecipeError(Qwen3VLExportError):
    """A recipe that cannot be read or that asks for the impossible."""


class CheckpointError(Qwen3VLExportError):
    """A checkpoint that is missing, of another architecture, or whose tensors are not the expected ones."""


class BuildError(Qwen3VLExportError):
    """A build that cannot go on: output directory taken, disk full, a graph that fails its checks."""


class SpaceError(BuildError):
    """A disk with too little room for what is to be written."""


class ArtifactError(Qwen3VLExportError):
    """An artifact directory that is incomplete, altered or too new for this onnxruntime."""


class InputError(Qwen3VLExportError):
    """A picture, prompt or option the model cannot take."""


class PublishError(Qwen3VLExportError):
    """An artifact that cannot be published or fetched: licence, name, permission, network, or a file that differs."""


class FleetError(Qwen3VLExportError):
    """A fleet that cannot run: store, scheduler or workers are missing, too small, full, or of differing versions."""


class FleetStopped(FleetError):
    """A fleet whose scheduler or workers went away and did not come back. What it had finished is in its store."""


class ParityError(Qwen3VLExportError):
    """A verification that found a difference, or compared nothing."""

    exit_code = 1
