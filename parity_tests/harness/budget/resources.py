"""The resources of one verification: what its cases take, and whether this machine has it.

Knows sizes and what there is; nothing about how anything is computed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen3vl_export.artifact import Artifact
from qwen3vl_export.console import format_size
from qwen3vl_export.errors import ParityError

from ..sides.pytorch.reference import SMALL_MODEL
from ..sides.pytorch.reference_cache import Store
from ..sides.pytorch.torch_model import read_config
from .activations import FLOAT32, outputs_of, results_of
from .machine import free_disk, memory_left
from .memory import LIBRARIES, SLACK, MemoryNeeds, memory_needs
from .sizes import CaseSizes, ModelSizes

HELD = 4  # at most one part in so many of the memory is for what computations hold, the rest for pieces of the artifact


@dataclass(frozen=True)
class Resources:
    """What a verification takes, and what it may take.

    Attributes:
        cases: the sizes of the plan's cases, by name; what is asked about others counts nothing.
        memory: bytes that the process may take; None is what is free, less a reserve.
        results: directory of results on disk.
        most_results: bytes of PyTorch's results that it may hold.
    """

    model: ModelSizes
    cases: Mapping[str, CaseSizes]
    needs: MemoryNeeds
    memory: int | None
    results: Path
    most_results: int

    def room(self, largest: bool) -> int:
        """Bytes of memory for what PyTorch's calls hold while they wait for a module, beside what one of them takes.

        Args:
            largest: whether the call that holds the most is among them.
        """
        left = round((memory_left(self.memory) - LIBRARIES - self.needs.module) / SLACK)
        return left - (self.needs.computing.passing if largest else self.needs.in_step)

    def piece(self) -> int | None:
        """Bytes of weights of the artifact that may be open at a time; None if all its sessions fit into memory."""
        left = memory_left(self.memory)
        if self.needs.opened <= left:
            return None
        left -= self.needs.running
        return max(0, left - min(left // HELD, self.needs.waiting))

    def held(self) -> int:
        """Bytes of memory for what the artifact's computations hold while its pieces are exchanged."""
        return max(0, memory_left(self.memory) - self.needs.running) // HELD

    def fit_on_disk(self, names: Collection[str], free: int) -> bool:
        """Whether the results of both sides fit on the disk together, of cases by name.

        Args:
            free: bytes on the disk.
        """
        pytorch = sum(results_of(self.model, self.cases[name]) for name in names if name in self.cases)
        return pytorch <= self.most_results and self.results_of(names) <= free

    def results_of(self, names: Iterable[str]) -> int:
        """Bytes that the results of both sides take on disk, of cases by name."""
        cases = [self.cases[name] for name in names if name in self.cases]
        return sum(results_of(self.model, case) + outputs_of(self.model, case) for case in cases)


def resources_of(
    artifact: Artifact, checkpoint: Path, cases: Sequence[CaseSizes], memory: int | None, results: Store
) -> Resources:
    """The resources of verifying these cases.

    Args:
        memory: bytes that the process may take; None is what is free, less a reserve.
        results: where PyTorch's results are stored.
    """
    model = ModelSizes.of(read_config(checkpoint)[0], artifact.manifest.facts.head)
    needs = memory_needs(artifact, checkpoint, model, cases)
    return Resources(model, {case.name: case for case in cases}, needs, memory, results.root, results.budget)


def must_stream(artifact: Artifact, resources: Resources) -> bool:
    """Whether PyTorch has to keep the checkpoint on disk, because both sides do not fit into memory together.

    Raises:
        ParityError: either side alone takes more memory than is left, or the results of a case more disk.
    """
    needs, left = resources.needs, memory_left(resources.memory)
    if needs.streamed > left:
        sides = f"the artifact {format_size(needs.artifact)}, PyTorch {format_size(needs.pytorch)}"
        raise ParityError(
            f"{artifact.root}: verifying it takes {format_size(needs.streamed)} of memory ({sides}), "
            f"{format_size(max(left, 0))} are left",
            "Close other programs, pass a larger --memory if there is more, or use a larger machine",
        )
    if needs.whole <= left:
        return False
    free = free_disk(resources.results)
    for name in resources.cases:
        if not resources.fit_on_disk([name], free):
            raise ParityError(
                f"{resources.results}: the results of {name} take {format_size(resources.results_of([name]))} of disk, "
                f"{format_size(free)} are free",
                "Free some space, or choose another disk: --cache DIR",
            )
    return True


def should_stream(resources: Resources) -> bool:
    """Whether PyTorch is done sooner a module at a time, wherever both sides fit into memory: with a large model, all
    about a case is then answered by one call, in place of one for each token of an answer."""
    free = free_disk(resources.results)
    large = resources.needs.weights >= FLOAT32 * SMALL_MODEL
    return large and all(resources.fit_on_disk([name], free) for name in resources.cases)
