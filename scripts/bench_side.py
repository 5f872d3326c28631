"""What one side of `bench.py` does, in a process of its own: it makes its model, reads a prompt, looks at a picture.

    python bench_side.py make SIDE WORK
    python bench_side.py read SIDE WORK THREADS CONTEXT
    python bench_side.py look SIDE WORK THREADS
    python bench_side.py roofline THREADS
    python bench_side.py versions

Figures are printed as JSON: seconds and bytes. It needs numpy and what the side needs, so that the interpreter may be
another than that of `bench.py`.
"""

from __future__ import annotations

import contextlib
import json
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from bench_sides import load_side, make_side
from decoder_sides import Prompt, Refused, prompt_file
from hardware import resident

STEPS = 12  # tokens after the first; the median of them is the time per token
WARM_UP = 8  # tokens of a first prompt, which nobody times
TOOLS = (
    *("onnxruntime", "torch", "transformers", "onnxruntime-genai", "llama-cpp-python"),
    *("openvino", "openvino-genai", "optimum-intel", "nncf"),
)
PHOTOGRAPH, FIRST = 1024, 256  # pixels a side, of the picture that is timed and of one before it


class Watch:
    """When each token was there: by the clock, and of all threads together.

    The second hardly moves on a machine that is busy besides. Threads that wait by spinning count as well, so compare
    CPU seconds of runs with one thread.
    """

    def __init__(self) -> None:
        self.resident = 0
        self.clock, self.cpu = [time.perf_counter()], [time.process_time()]

    def mark(self) -> None:
        """Another token is there."""
        self.clock.append(time.perf_counter())
        self.cpu.append(time.process_time())
        if len(self.clock) == STEPS + 2:
            self.resident = resident("VmRSS")  # while the cache is there

    @property
    def seconds_to_first(self) -> float:
        return self.clock[1] - self.clock[0]

    def figures(self, first: str) -> dict[str, float]:
        """Seconds to the first token, under this name, and of each one after it; bytes."""
        return {
            first: self.seconds_to_first,
            f"{first}_cpu": self.cpu[1] - self.cpu[0],
            "decode": statistics.median(np.diff(self.clock[1:]).tolist()),
            "decode_cpu": statistics.median(np.diff(self.cpu[1:]).tolist()),
            "resident": self.resident,
            "peak": resident("VmHWM"),
        }


def read(side: str, work: Path, threads: int, context: int) -> dict[str, float]:
    """A prompt of `context` tokens and the tokens after it."""
    prompt = Prompt(**json.loads(prompt_file(work, context).read_text()))
    opening = Watch()
    model = load_side(side, work, threads, context + STEPS + 1)
    model.answer(prompt.start(WARM_UP), 2, opening.mark)
    watch = Watch()
    model.answer(prompt, STEPS + 1, watch.mark)
    return {"opening": opening.seconds_to_first, **watch.figures("prefill")}


def look(side: str, work: Path, threads: int) -> dict[str, float]:
    """A photograph and a question, and the tokens after them."""
    generator = np.random.default_rng(0)
    model = load_side(side, work, threads, (PHOTOGRAPH // 32) ** 2 + 512)
    model.look(generator.integers(0, 256, (FIRST, FIRST, 3), np.uint8), 2, lambda: None)
    pixels = generator.integers(0, 256, (PHOTOGRAPH, PHOTOGRAPH, 3), np.uint8)
    watch = Watch()
    tokens = model.look(pixels, STEPS + 1, watch.mark)
    return {"tokens": tokens, **watch.figures("first_token")}


def roofline(threads: int) -> dict[str, float]:
    """What this machine can do at most: bytes read a second, float32 operations a second."""
    from vision_sides import gemm_peak

    parts = [np.ones(2**26, np.float32) for _ in range(threads)]  # 256 MB each

    def stream() -> None:
        workers = [threading.Thread(target=np.dot, args=(part, part)) for part in parts]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    bandwidth = sum(part.nbytes for part in parts) / min(timed(stream) for _ in range(7))
    return {"bandwidth": bandwidth, "gemm": gemm_peak(threads) * 1e9}


def versions() -> dict[str, str]:
    """The versions of this interpreter and of what it has of `TOOLS`."""
    numbers = {"python": platform.python_version()}
    for tool in TOOLS:
        with contextlib.suppress(PackageNotFoundError):
            numbers[tool] = version(tool)
    return numbers


def timed(call: Callable[[], None]) -> float:
    """Seconds by the clock."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(command: str, *arguments: str) -> dict[str, Any]:
    """Carry out one command."""
    if command == "roofline":
        return roofline(int(arguments[0]))
    if command == "versions":
        return versions()
    side, work, numbers = arguments[0], Path(arguments[1]), [int(number) for number in arguments[2:]]
    if command == "make":
        make_side(side, work)
        return {}
    try:
        return read(side, work, *numbers) if command == "read" else look(side, work, *numbers)
    except Refused as reason:
        return {"refused": str(reason)}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
