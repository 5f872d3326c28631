"""How this process gets memory from the system, and when it gives it back.

A page that was given back has to be faulted in and cleared again, which can take longer than all that is computed on
it: where memory is used again at once it is kept, and where another side needs it it goes back. Knows glibc and
PyTorch's allocator; nothing about verifications.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

# Parameters of glibc's mallopt.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8
LARGE_ARRAY = 1 << 22  # bytes; numpy asks for huge pages for arrays of this size
KEPT = 1 << 26  # bytes at the end of a heap
NEVER = -1  # trims
MAPPINGS = 1 << 16  # glibc's default
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # of PyTorch, read when it allocates its first tensor


def map_large_arrays() -> None:
    """Have large arrays mapped by themselves, in huge pages, so that each goes back to the system when it is freed.

    By default glibc soon takes arrays of up to 32 MB from its heaps, one for each thread, whose gaps stay in memory.
    Smaller ones, such as the blocks of `judging/measures.py`, come from one heap, which keeps a little at its end:
    computations in step (`sides/lockstep.py`) have a thread each, of which one runs at a time, and a heap for each
    would keep what all of them have freed.
    """
    os.environ.setdefault(HUGE_PAGES, "1")
    configure({M_MMAP_THRESHOLD: LARGE_ARRAY, M_TRIM_THRESHOLD: KEPT, M_MMAP_MAX: MAPPINGS, M_ARENA_MAX: 1})


def keep_freed_arrays() -> None:
    """Have what is freed stay in the heap for the next array, until `release_memory`: for weights that take turns in
    memory and are of the same sizes."""
    configure({M_TRIM_THRESHOLD: NEVER, M_MMAP_MAX: 0})


def configure(parameters: dict[int, int]) -> None:
    """Set parameters of mallopt, where there is glibc."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        for parameter, value in parameters.items():
            ctypes.CDLL(None).mallopt(parameter, value)


def release_memory() -> None:
    """Give freed memory back to the system, which glibc keeps for this process."""
    with contextlib.suppress(OSError, AttributeError):  # as in `configure`
        ctypes.CDLL(None).malloc_trim(0)
