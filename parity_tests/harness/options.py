"""The options of a verification. Imports nothing heavy, so that the command line can import it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """The options of a verification.

    Attributes:
        matrix: quick, release, standard or full; None is the recipe's choice.
        checkpoint: directory of the checkpoint; None is the one the recipe names.
        cases: only these cases; the run is then a replay and writes no evidence.
        seed: of the random cases; None is the file's.
        bisect: also find the first layer that differs.
        cache: directory for PyTorch's results; None is the user's cache directory.
        history: file to which the result is appended; None is `parity-history.jsonl` beside the artifact.
        precision: the only one to verify, "" being the default one; None is all the artifact has.
        adapters: directories or repositories of the checkpoint's adapters; by default those the manifest records.
        memory: bytes that the process may take; None is what is free, less a reserve.
        resume: go on with a verification that was interrupted.
        time: seconds to which the cases are cut, by their estimate; None is as long as all take.
        plan: only show what the verification would take.
        tasks: files of questions that are asked besides.
        device: that PyTorch computes on: cpu, cuda or cuda:N.
    """

    matrix: str | None = None
    checkpoint: Path | None = None
    cases: Sequence[str] = ()
    seed: int | None = None
    bisect: bool = False
    cache: Path | None = None
    history: Path | None = None
    precision: str | None = None
    adapters: Sequence[str] = ()
    memory: int | None = None
    resume: bool = False
    time: float | None = None
    plan: bool = False
    tasks: Sequence[Path] = ()
    device: str = "cpu"
