"""The geometry of the report's charts: from numbers to coordinates.

Everything is in the units of an SVG view box; colours are steps of a scale that the style sheet fills in for light and
dark. Knows numbers; nothing about parity.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

EDGES = (1, 48, 80, 112, 144, 208, 272, 400, 528, 784, 1040)  # pixels; the last class is open
STEPS = 7  # of the colour scale
CELL = 44
LEFT, TOP = 58, 8


@dataclass(frozen=True)
class Cell:
    """A class of width x height: where it is drawn, its colour step, and what a reader sees on it."""

    x: float
    y: float
    step: int
    label: str
    title: str
    failed: bool


@dataclass(frozen=True)
class Heatmap:
    cells: Sequence[Cell]
    columns: Sequence[tuple[float, str]]
    lines: Sequence[tuple[float, str]]
    width: float
    height: float
    low: float
    high: float


def class_name(index: int) -> str:
    if index == len(EDGES) - 1:
        return f"{EDGES[index]}+"
    return f"{EDGES[index]}-{EDGES[index + 1] - 1}"


def heatmap(values: Mapping[str, tuple[int, int, float | None, bool]]) -> Heatmap | None:
    """Worst value of each class of picture sizes.

    Args:
        values: case -> (width, height, value, failed); a value that is None or no number counts as the worst.
    """
    groups: dict[tuple[int, int], list[tuple[float, str, bool]]] = {}
    for case, (width, height, value, failed) in values.items():
        place = bisect_right(EDGES, width) - 1, bisect_right(EDGES, height) - 1
        number = math.inf if value is None or not math.isfinite(value) else value
        groups.setdefault(place, []).append((number, case, failed))
    numbers = [number for group in groups.values() for number, *_ in group if 0 < number < math.inf]
    if not numbers:
        return None
    low, high = min(numbers), max(numbers)
    across = sorted({column for column, _ in groups})
    down = sorted({line for _, line in groups})
    cells = []
    for (column, line), group in sorted(groups.items()):
        worst = max(group)
        title = f"{class_name(column)} wide, {class_name(line)} high: {worst[0]:.2g} in {worst[1]}"
        cells.append(
            Cell(
                LEFT + CELL * across.index(column),
                TOP + CELL * down.index(line),
                step_of(worst[0], low, high),
                short(worst[0]),
                title + (f" ({len(group)} cases)" if len(group) > 1 else ""),
                any(failed for *_, failed in group),
            )
        )
    return Heatmap(
        cells,
        [(LEFT + CELL * (index + 0.5), class_name(column)) for index, column in enumerate(across)],
        [(TOP + CELL * (index + 0.5), class_name(line)) for index, line in enumerate(down)],
        LEFT + CELL * len(across) + 8,
        TOP + CELL * len(down) + 64,
        low,
        high,
    )


def short(value: float) -> str:
    """As many characters as fit on a cell: `0.64`, `2.1e-5`."""
    if value == math.inf:
        return "none"
    return f"{value:.2g}" if value >= 0.01 else f"{value:.1e}".replace("e-0", "e-")


def step_of(value: float, low: float, high: float) -> int:
    """0 to STEPS - 1, evenly on a logarithmic scale."""
    if value >= high:
        return STEPS - 1
    if value <= low:
        return 0
    return min(STEPS - 1, int(STEPS * math.log(value / low) / math.log(high / low)))


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis from `low` to `high`, drawn from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        clipped = min(max(value, self.low), self.high)
        share = math.log(clipped / self.low) / math.log(self.high / self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, every: int = 1) -> list[tuple[float, str]]:
        """Powers of ten and their names."""
        powers = range(round(math.log10(self.low)), round(math.log10(self.high)) + 1)
        return [(self(10.0**power), f"1e{power}") for power in powers if power % every == 0]


def log_axis(values: Sequence[float], start: float, end: float, floor: float = 1e-16) -> Axis:
    """An axis over whole powers of ten that holds every finite value."""
    finite = [max(value, floor) for value in values if math.isfinite(value)] or [floor]
    low = 10.0 ** math.floor(math.log10(min(finite)))
    high = 10.0 ** math.ceil(math.log10(max(finite)))
    return Axis(low, high if high > low else low * 10, start, end)


def line(values: Sequence[float | None], axis: Axis, left: float, right: float) -> list[str]:
    """The points of a curve as `x,y` runs, broken where a value is missing."""
    width = (right - left) / max(1, len(values) - 1)
    runs: list[list[str]] = [[]]
    for index, value in enumerate(values):
        if value is None or value != value:
            runs.append([])
            continue
        runs[-1].append(f"{left + index * width:.1f},{axis(max(value, axis.low))}")
    return [" ".join(run) for run in runs if run]
