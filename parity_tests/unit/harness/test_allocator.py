"""Memory that is freed goes back to the system, or stays for the next array, as the two sides want it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ...fixtures.paths import ROOT

MEASURED = """
import resource
import numpy as np
from parity_tests.harness.budget.allocator import keep_freed_arrays, map_large_arrays, release_memory
from parity_tests.harness.budget.machine import resident_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def fill(count):
    return [np.full(size, 1, np.uint8) for size in [30_000_000] * count]

map_large_arrays()
before = resident_memory()
fill(2)
mapped = resident_memory() - before
keep_freed_arrays()
fill(2)
start = faults()
for _ in range(4):
    fill(2)
again = faults() - start
kept = resident_memory() - before
map_large_arrays()
release_memory()
print(mapped, kept, resident_memory() - before, again)
"""


@pytest.fixture(scope="module")
def measured() -> list[int]:
    """Bytes left of two arrays of 30 MB that were mapped, and that were kept; of these once they were released; and
    how many pages were faulted in when arrays took the kept memory."""
    return numbers_of(MEASURED)


def numbers_of(script: str) -> list[int]:
    """What a script prints, in a process of its own."""
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return [int(number) for number in result.stdout.split()]


def test_what_was_mapped_goes_back_at_once(measured: list[int]) -> None:
    mapped, *_ = measured
    assert mapped < 10_000_000


def test_what_is_kept_is_not_faulted_in_again(measured: list[int]) -> None:
    _, kept, _, again = measured
    assert kept > 55_000_000
    assert again < 1_000  # of 4 x 15,000 pages


def test_what_was_kept_goes_back_when_it_is_released(measured: list[int]) -> None:
    _, _, released, _ = measured
    assert released < 10_000_000


IN_STEP = """
from contextlib import nullcontext
import numpy as np
from parity_tests.harness.budget.allocator import map_large_arrays
from parity_tests.harness.budget.machine import resident_memory
from parity_tests.harness.sides.lockstep import reach, run_in_step

def compute():
    [np.full(3_000_000, 1, np.uint8) for _ in range(10)]
    reach("next")
    return resident_memory()

map_large_arrays()
before = resident_memory()
print(max(run_in_step([compute] * 15, {"next": 0}, lambda step: nullcontext())) - before)
"""


def test_computations_in_step_share_what_they_free() -> None:
    """15 threads that freed 30 MB each hold no more than the end of one heap."""
    (left,) = numbers_of(IN_STEP)
    assert left < 80_000_000
