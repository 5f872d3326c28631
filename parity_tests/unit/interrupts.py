"""How a child process meets Ctrl-C, whatever the tests were started with.

A process that ignores SIGINT hands that on: `./scripts/test &` in a shell script makes every child of a test ignore it.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def children_interruptible(interruptible: bool = True) -> Iterator[None]:
    """Processes started inside have SIGINT at its default, or ignore it.

    A program that is executed ignores what was ignored before; a handler of any kind is put back to the default. So
    a handler here is enough, and nothing runs between fork and exec. For the main thread, as all signal handlers.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler if interruptible else signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
