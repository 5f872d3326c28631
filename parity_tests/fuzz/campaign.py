"""Tries many inputs of one target, and writes a file for each that fails, with the command that repeats it.

Input n of a seed is always the same, so a campaign repeats exactly. Files in `regressions/TARGET` come first.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from .targets import TARGETS
from .worker import Outcome, Worker

REGRESSIONS = Path(__file__).parent / "regressions"  # inputs that failed once
DIRECTORY = Path("fuzz-failures")  # beside the current directory
MAX_FAILURES = 20  # after which a campaign ends


@dataclass(frozen=True)
class Failure:
    """An input that failed, written to a file."""

    target: str
    outcome: Outcome
    file: Path

    def __str__(self) -> str:
        command = f"python -m parity_tests.fuzz --target {self.target} --input {self.file}"
        return f"{self.target}: {self.outcome.kind}\n  repeat: {command}\n{self.outcome.detail}"


@dataclass
class Report:
    """What a campaign of one target came to."""

    target: str
    kinds: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0  # of CPU time, in the process that read the inputs
    slowest: float = 0.0
    largest: float = 0.0  # megabytes

    @property
    def tried(self) -> int:
        return self.kinds.total()

    def add(self, outcome: Outcome) -> None:
        self.kinds[outcome.kind] += 1
        self.seconds += outcome.seconds
        self.slowest, self.largest = max(self.slowest, outcome.seconds), max(self.largest, outcome.megabytes)

    def __str__(self) -> str:
        proper = {kind: count for kind, count in self.kinds.items() if not Outcome(kind).fails}
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(proper.items()))
        return (
            f"{self.target}: {self.tried} inputs, {counts}, {len(self.failures)} failed; {self.seconds:.0f} s, "
            f"at most {self.slowest:.2f} s and {self.largest:.0f} MB"
        )


def make_inputs(target: str, artifact: Path, seed: int) -> Iterator[bytes]:
    """The inputs of a seed, without end, after those that failed once."""
    maker = TARGETS[target](artifact)
    for file in sorted((REGRESSIONS / target).glob("*")):
        yield file.read_bytes()
    for number in itertools.count():
        yield maker.make(Random(f"{target} {seed} {number}"))


def run_campaign(
    target: str,
    artifact: Path,
    inputs: Iterable[bytes],
    failures: Path = DIRECTORY,
    until: float = float("inf"),
    log: Callable[[str], None] = print,
) -> Report:
    """Try the inputs until they end, the clock (`time.monotonic`) says `until`, or `MAX_FAILURES` failed."""
    report = Report(target)
    with Worker(TARGETS[target], artifact) as worker:
        for data in inputs:
            if time.monotonic() >= until or len(report.failures) >= MAX_FAILURES:
                break
            outcome = worker.try_input(data)
            report.add(outcome)
            if outcome.fails:
                file = failures.absolute() / f"{target}-{hashlib.sha256(data).hexdigest()[:12]}"
                failures.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
                report.failures.append(Failure(target, outcome, file))
                log(str(report.failures[-1]))
    return report
