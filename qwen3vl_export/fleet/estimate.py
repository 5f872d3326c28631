"""What a recipe costs: bytes, peak memory and time of its build (`exporter/plan`) and of its verification.

Building is what `build --plan` says. Verifying is arithmetic: passes over a case, times the parameters, over the
speed of a product and of memory, both timed on this machine. An estimate orders the work and cuts it into shards; no
verdict depends on it.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

from ..errors import FleetError
from ..recipe.model import Recipe

ESTIMATING_MEMORY = MERGING_MEMORY = 1 << 30
ESTIMATING_SECONDS, MERGING_SECONDS = 15.0, 3.0
VERIFYING_MEMORY = 2 << 30  # both libraries, and the scores of the largest picture in eager attention
PROMPT, ANSWER = 600, 64  # tokens of a case, pictures' tokens among them
PASSES, ANSWERS = 6, 3  # over its prompt and over its answer, both sides together
OPENING_SECONDS = 3.0  # independent of the model: importing both libraries
CASE_SECONDS = 0.4  # independent of the model: drawing pictures, comparing arrays
SIDE = 768  # of the matrices whose product is timed
COPIED = 64 << 20  # bytes whose copying is timed


@dataclass(frozen=True)
class Estimate:
    """Bytes of the artifact, bytes of memory, seconds.

    Attributes:
        unit_seconds: of one ordinary case.
        opening_seconds: until a worker has read checkpoint and artifact and can begin with its first case.
    """

    size: int
    build_memory: int
    build_seconds: float
    verify_memory: int
    unit_seconds: float
    opening_seconds: float

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self), indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> Estimate:
        """The inverse of `to_json`.

        Raises:
            FleetError: it is no estimate.
        """
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError) as error:
            raise FleetError(f"an estimate in the store cannot be read ({error})", "Remove it") from error


def estimate(recipe: Recipe, directory: Path) -> Estimate:
    """The estimate of a recipe on this machine.

    Args:
        directory: on the disk that the artifact is built on.

    Raises:
        Qwen3VLExportError: as `build`.
    """
    from ..exporter.plan import plan_build
    from ..exporter.skeletons import open_recipe_checkpoint

    reset_peak_memory()
    planned = plan_build(recipe, out=directory / recipe.name, log=lambda line: None)
    parameters = sum(prod(entry.shape) for entry in open_recipe_checkpoint(recipe, None).tensors.values())
    products, copies = speed_of_products(), speed_of_copies()
    seconds = PASSES * PROMPT * 2 * parameters / products + ANSWERS * ANSWER * 4 * parameters / copies
    return Estimate(
        size=planned.bytes,
        build_memory=planned.memory,
        build_seconds=round(sum(planned.seconds.values()), 1),
        verify_memory=VERIFYING_MEMORY + 4 * parameters + planned.bytes,  # PyTorch computes in float32
        unit_seconds=round(CASE_SECONDS + seconds, 2),
        opening_seconds=round(OPENING_SECONDS + (4 * parameters + planned.bytes) / copies, 2),
    )


def reset_peak_memory() -> None:
    """Reset this process's peak memory, so that the estimate does not include what ran before."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")


def speed_of_products() -> float:
    """Floating-point operations a second, in one product of float32 matrices."""
    import torch

    matrix = torch.ones(SIDE, SIDE)
    matrix @ matrix
    start = time.perf_counter()
    matrix @ matrix
    return 2.0 * SIDE**3 / (time.perf_counter() - start)


def speed_of_copies() -> float:
    """Bytes a second, read."""
    import torch

    block = torch.ones(COPIED, dtype=torch.uint8)
    block.clone()
    start = time.perf_counter()
    block.clone()
    return COPIED / (time.perf_counter() - start)
