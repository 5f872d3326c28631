"""The scale of a reference: what a difference is divided by, so that a limit means the same for every checkpoint.

Values of other checkpoints and layers are larger or smaller, and so is what rounding does to them. An absolute
difference says little there; one in units of the reference's own values does. Pure functions over numpy arrays, in
float64. A scale without values is None, and so is a difference in units of it or of zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating] | NDArray[np.integer]
BULK = 2.0  # times the median channel is the most that the scale of an ordinary channel can be
MASSIVE = 4.0  # times the scale of ordinary channels: from here on, a channel is measured by itself
SHALLOW = 4  # blocks of the tower on which the limits on features were measured


def rms(reference: Array) -> float | None:
    """Root mean square."""
    return float(np.sqrt(np.square(reference.astype(np.float64)).mean())) if reference.size else None


def magnitude(reference: Array) -> float | None:
    """Largest absolute value; nan if any is NaN."""
    return float(np.maximum(np.abs(reference.max()), np.abs(reference.min()))) if reference.size else None


def in_units(difference: float | None, scale: float | None) -> float | None:
    """A difference in units of a scale."""
    return difference / scale if difference is not None and scale else None


def channel_scales(reference: Array, ceiling: float) -> NDArray[np.float64]:
    """The scale of each channel of values [..., C]: their root mean square, where no channel has most of it.

    Towers have channels whose values are a hundred times those of others ("massive activations", Sun et al. 2024,
    arXiv 2402.17762). The root mean square over all channels is theirs, and a limit by it would hide mistakes in every
    other one: these are measured by at most twice the median channel, the massive ones by a quarter of themselves.

    Args:
        ceiling: the most that the scale of an ordinary channel may be.
    """
    channels = reference.reshape(-1, reference.shape[-1]).astype(np.float64)
    powers = np.square(channels).mean(0)
    ordinary = min(ceiling, float(np.sqrt(powers.mean())), BULK * float(np.sqrt(np.median(powers))))
    scales: NDArray[np.float64] = np.maximum(ordinary, np.sqrt(powers) / MASSIVE)
    return scales


def largest_in_channels(difference: Array, scales: NDArray[np.float64]) -> float | None:
    """The largest absolute difference [..., C], each in units of its channel's scale; nan if any is NaN."""
    if not difference.size or not scales.all():
        return None
    return float((np.abs(difference.reshape(-1, difference.shape[-1])).max(0) / scales).max())


def growth(blocks: int) -> float:
    """How much larger rounding may be after this many blocks than after the few on which limits were measured: each
    block adds its own, so that the sum grows at most in proportion (Higham 2002, Accuracy and Stability of Numerical
    Algorithms, section 4.2). Measured, it grows as the square root (docs/parity.md, Scales)."""
    return max(1.0, blocks / SHALLOW)


def tower_blocks(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Blocks of the tower before its features and before each DeepStack map.

    Args:
        config: a checkpoint's config.json.
    """
    vision = config["vision_config"]
    return (vision["depth"], *(index + 1 for index in vision["deepstack_visual_indexes"]))
