"""What a failing result looks like: PyTorch with a known mistake in it.

For each suspect the reference is computed again with that mistake. If the artifact's result is far closer to that than
to the truth, the mistake is named. No verdict depends on this; it turns "max_abs 4.1" into a place to look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from .bench import Bench, Floats, Ints
from .matrix import Case
from .outcome import Outcome
from .reference import Prefill, Reference

Vision = Callable[[Reference, Floats, Ints], Floats]
Decoder = Callable[[Reference, Prefill, Ints], Floats]


@contextmanager
def attribute(owner: object, name: str, value: object) -> Iterator[None]:
    """`owner.name` is `value` inside."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def half_pixel_grid(reference: Reference, pixels: Floats, grid: Ints) -> Floats:
    with attribute(reference.model.model.visual, "interpolation_align_corners", False):
        return reference.vision(pixels, grid, remember=False)


def swapped_grid(reference: Reference, pixels: Floats, grid: Ints) -> Floats:
    return reference.vision(pixels, np.ascontiguousarray(grid[:, [0, 2, 1]]), remember=False)


def without_maps(reference: Reference, pixels: Floats, grid: Ints) -> Floats:
    features = reference.vision(pixels, grid).copy()
    features[:, reference.hidden_size :] = 0
    return features


def decoder_without_maps(reference: Reference, start: Prefill, mask: Ints) -> Floats:
    rows = start.inputs_embeds.copy()
    rows[..., reference.hidden_size :] = 0
    return reference.decoder(rows, mask, start.position_ids)


def blocked_sections(reference: Reference, start: Prefill, mask: Ints) -> Floats:
    """All time frequencies, then all row ones, then all column ones, as Qwen2-VL has it."""
    rotary = reference.model.model.language_model.rotary_emb
    sections = rotary.mrope_section

    def blocked(frequencies: torch.Tensor) -> torch.Tensor:
        blocks = frequencies.split(sections, dim=-1)
        half = torch.cat([block[axis] for axis, block in enumerate(blocks)], dim=-1)
        return torch.cat([half, half], dim=-1)

    with attribute(rotary, "recomposition_frequencies", blocked):
        return reference.decoder(start.inputs_embeds, mask, start.position_ids)


def swapped_axes(reference: Reference, start: Prefill, mask: Ints) -> Floats:
    position_ids = np.ascontiguousarray(start.position_ids[[0, 2, 1]])
    return reference.decoder(start.inputs_embeds, mask, position_ids)


def time_only(reference: Reference, start: Prefill, mask: Ints) -> Floats:
    position_ids = np.ascontiguousarray(start.position_ids[[0, 0, 0]])
    return reference.decoder(start.inputs_embeds, mask, position_ids)


VISION_SUSPECTS: dict[str, Vision] = {
    "position table interpolated with align_corners=False (vision encoder, position interpolation)": half_pixel_grid,
    "height and width of the grid swapped (vision encoder, geometry)": swapped_grid,
    "DeepStack maps missing from the features (vision encoder, DeepStack)": without_maps,
}
DECODER_SUSPECTS: dict[str, Decoder] = {
    "DeepStack maps dropped (decoder, DeepStack)": decoder_without_maps,
    "M-RoPE sections blocked instead of interleaved (decoder, M-RoPE)": blocked_sections,
    "rows and columns swapped in the positions (decoder, M-RoPE)": swapped_axes,
    "one position axis used for all three (decoder, M-RoPE)": time_only,
}


def diagnose(bench: Bench, outcome: Outcome, case: Case | None) -> Outcome:
    """The outcome with the suspect that explains it best, if one does."""
    if case is None or outcome.stage not in ("vision", "decoder"):
        return outcome
    try:
        candidate, truth, suspects = suspects_of(bench, outcome.stage, case)
    except Exception:  # the outcome already says what failed
        return outcome
    error = distance(candidate, truth)
    ratio = bench.profile.settings["explained_ratio"]
    close = {name: distance(candidate, suspect()) for name, suspect in suspects.items()}
    best = min(close, key=lambda name: close[name])
    return replace(outcome, diagnosis=best) if close[best] <= ratio * error else outcome


def suspects_of(bench: Bench, stage: str, case: Case) -> tuple[Floats, Floats, dict[str, Callable[[], Floats]]]:
    """The artifact's result, the truth, and each suspect's result when called."""
    reference = bench.reference
    if stage == "vision":
        pixels, grid = bench.vision_inputs(case)
        found = {name: lambda s=suspect: s(reference, pixels, grid) for name, suspect in VISION_SUSPECTS.items()}
        return bench.encode(pixels, grid), reference.vision(pixels, grid), found
    inputs = bench.inputs(case)
    start = reference.prefill(inputs)
    mask = inputs.attention_mask
    seen = mask.astype(bool)
    logits, _ = bench.decode(start.inputs_embeds, mask, start.position_ids)
    later = {name: lambda s=suspect: s(reference, start, mask)[seen] for name, suspect in DECODER_SUSPECTS.items()}
    return logits[seen], start.logits[seen], later


def distance(a: Floats, b: Floats) -> float:
    """Relative L2, infinite where it is not a number."""
    found = float(np.linalg.norm(a.astype(np.float64) - b) / max(float(np.linalg.norm(b)), 1e-30))
    return found if np.isfinite(found) else np.inf
