"""The checks, one function per stage, in the order a value flows: prompt, pixels, features, rows, logits, tokens.

Each drives the shipped runtime and returns a `Finding`: measures, not verdicts. Up to `decoder` a stage gets the
reference's inputs, so that a fault shows in its own stage and not in all that follow; `prefill` and `generate` are end
to end. Padding is never compared: its values have no meaning.

Legend: B batch, S tokens, T new tokens, N image tokens, D DeepStack maps, W = (1 + D) * H.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from qwen3vl_export.contract import EMBED_TOKENS, EMBEDDINGS
from qwen3vl_export.evidence import Difference
from qwen3vl_export.runtime import Prepared
from qwen3vl_export.runtime.arrays import Floats, Ints
from qwen3vl_export.runtime.positions import rope_index, visual_tokens

from ..cases.matrix import Case, Prompt
from ..judging import measures
from ..judging.measures import closeness, differences, logit_closeness, max_abs, token_max_abs
from ..judging.outcome import Finding
from ..judging.scales import channel_scales, growth, in_units, largest_in_channels, rms
from ..sides import routing
from ..sides.artifact.artifact_results import ask_all
from ..sides.bench import Bench, DecoderCall
from ..sides.pytorch.forward import Prefill
from ..sides.pytorch.inputs import Inputs
from ..sides.pytorch.reference import Greedy
from ..sides.routing import RoutedLogits

PIXEL_PEAK = 2.0  # from -1 to 1


def prompt(bench: Bench, case: Case) -> Finding:
    """Token ids against transformers' chat template, placeholder expansion and tokenizer."""
    return compare_prompts(bench, bench.prompts(case), bench.prepared(case))


def compare_prompts(bench: Bench, prompts: Sequence[Prompt], prepared: Prepared) -> Finding:
    """`prompt`, of prompts that the runtime has prepared."""
    expected = bench.prompt_reference(prompts, prepared.image_grid_thw)
    unpadded = [ids[mask == 1] for ids, mask in zip(prepared.input_ids, prepared.attention_mask, strict=True)]
    wrong, where = 0, ""
    for row, (ids, truth) in enumerate(zip(unpadded, expected, strict=True)):
        same = measures.common_prefix(ids.tolist(), truth)
        if same < max(len(ids), len(truth)):
            wrong += max(len(ids), len(truth)) - same
            excerpt = slice(same, same + 4)
            where = f"row {row} differs from token {same} on: {ids[excerpt].tolist()}, not {truth[excerpt]}"
    left_padded = bool((np.diff(prepared.attention_mask, axis=1) >= 0).all())
    return Finding({"id_differences": wrong, "left_padded": left_padded}, compared=sum(map(len, expected)), where=where)


def preprocess(bench: Bench, case: Case) -> Finding:
    """Patch grids and pixel values against transformers' image processor."""
    return compare_pixels(bench, bench.prompts(case), bench.prepared(case))


def compare_pixels(bench: Bench, prompts: Sequence[Prompt], prepared: Prepared) -> Finding:
    """`preprocess`, of prompts that the runtime has prepared."""
    allowed = bench.fixed_grids
    sizes = [tuple(grid[1:]) for grid in prepared.image_grid_thw.tolist()]
    grids, pixels = bench.pixel_reference(prompts, sizes if allowed else None)
    wrong = differences(prepared.image_grid_thw, grids) or 0
    wrong += sum(size not in allowed for size in sizes) if allowed else 0
    where = f"grids {prepared.image_grid_thw.tolist()}, the reference has {grids.tolist()}" if wrong else ""
    values = {
        "grid_differences": wrong,
        "pixel_max_abs": None if wrong else max_abs(prepared.pixel_values, pixels),
        "psnr": None if wrong else measures.psnr(prepared.pixel_values, pixels, PIXEL_PEAK),
    }
    return Finding(values, compared=pixels.size, where=where)


def positions(bench: Bench, case: Case) -> Finding:
    """Three-axis positions and rope deltas against `get_rope_index`, padding included (both write 0 there)."""
    prepared = bench.prepared(case)
    expected = bench.reference.prefill(bench.inputs(case))
    unequal = prepared.position_ids != expected.position_ids
    where = ""
    if unequal.any():
        row, token = np.argwhere(unequal.any(0))[0].tolist()
        axes = prepared.position_ids[:, row, token].tolist()
        truth = expected.position_ids[:, row, token].tolist()
        where = f"first at row {row}, token {token}: (t, h, w) = {axes}, the reference has {truth}"
    return Finding(
        {
            "position_differences": differences(prepared.position_ids, expected.position_ids),
            "rope_delta_differences": differences(prepared.rope_deltas, expected.rope_deltas),
        },
        compared=expected.position_ids.size,
        where=where,
    )


def vision(bench: Bench, case: Case) -> Finding:
    """Features and each DeepStack map of the vision encoder, on the same patches."""
    pixels, grid = bench.vision_inputs(case)
    expected = bench.reference.vision(pixels, grid)
    return vision_finding(bench.encode(pixels, grid), expected, bench.reference.blocks, grid)


def vision_finding(candidate: Floats, reference: Floats, blocks: Sequence[int], grid: Ints) -> Finding:
    """Measures for each part of wide features [N, W], and the worst over the parts.

    Args:
        blocks: of the tower before each part, as `tower_blocks` returns them.
    """
    measures.check_shapes(candidate, reference)
    names = ["features", *(f"deepstack_{index}" for index in range(len(blocks) - 1))]
    split = [np.split(side, len(names), -1) for side in (candidate, reference)]
    parts = list(zip(*split, strict=True))
    by_part = {name: closeness(*pair) for name, pair in zip(names, parts, strict=True)}
    worst = max(names, key=lambda name: _badness(by_part[name]["max_abs"]))
    values = {f"{name}_{key}": value for name, part in by_part.items() for key, value in part.items()}
    values["max_abs"] = by_part[worst]["max_abs"]
    ceiling = rms(reference) or 0.0
    scaled = (
        largest_in_channels(guess.astype(np.float64) - truth, channel_scales(truth, ceiling) * growth(depth))
        for (guess, truth), depth in zip(parts, blocks, strict=True)
    )
    values["scaled_max_abs"] = max(scaled, key=_badness)
    cosines = [part["worst_token_cosine"] for part in by_part.values()]
    values["worst_token_cosine"] = max(cosines, key=lambda cosine: _badness(cosine, sign=-1))
    where = f"worst in {worst}, token {by_part[worst]['worst_token']} of {len(candidate)}, grid {grid.tolist()}"
    return Finding(values, compared=candidate.size, where=where)


def embeddings(bench: Bench, case: Case) -> Finding:
    """Wide rows, bit for bit: with the reference's features scattered in, and of the token table alone at every token
    of text, from whichever of the two graphs there are.

    `scaled_max_abs` is in units of the largest value of the table's rows, and of the features'.
    """
    inputs = bench.inputs(case)
    expected = bench.reference.prefill(inputs)
    text = ~visual_tokens(inputs.input_ids, bench.artifact.manifest.facts)
    heads: dict[str, tuple[Callable[[], Floats], NDArray[np.bool_]]] = {
        EMBEDDINGS: (lambda: bench.embed(inputs.input_ids, expected.image_features), np.ones_like(text)),
        EMBED_TOKENS: (lambda: bench.embed_tokens(inputs.input_ids), text),
    }
    rows, truth, scaled, where = [], [], [], ""
    for graph, (compute, compared) in heads.items():
        if graph not in bench.artifact.manifest.graphs:
            continue
        candidate = compute()
        measures.check_shapes(candidate, expected.inputs_embeds)
        unequal = (candidate != expected.inputs_embeds).any(-1) & compared
        if unequal.any() and not where:
            row, token = np.argwhere(unequal)[0].tolist()
            where = f"first at row {row}, token {token} (id {inputs.input_ids[row, token]}) of {graph}"
        groups = (text & compared, ~text & compared)  # the table's rows may be far smaller than features
        scaled += [
            measures.relative(candidate[group], expected.inputs_embeds[group]) for group in groups if group.any()
        ]
        rows.append(candidate[compared])
        truth.append(expected.inputs_embeds[compared])
    pair = np.concatenate(rows), np.concatenate(truth)
    values = {
        "differences": differences(*pair),
        "max_abs": max_abs(*pair),
        "scaled_max_abs": max(scaled, key=_badness),
    }
    return Finding(values, compared=pair[0].size, where=where)


def decoder(bench: Bench, case: Case) -> Finding:
    """The decoder alone over the reference's rows and positions: logits at every token of the prompt, or at the last
    ones of a long one."""
    inputs = bench.inputs(case)
    expected = bench.reference.prefill(inputs)
    rows, mask = expected.inputs_embeds, inputs.attention_mask
    logits = bench.decode(rows, mask, expected.position_ids)
    truth = _reference_logits(bench, expected, rows, mask)
    return add_routing(truth, logits_finding(logits, truth.logits, inputs))


def prefill(bench: Bench, case: Case) -> Finding:
    """The whole artifact, pictures to logits, at every token of the prompt, or at the last ones of a long one."""
    prepared, inputs = bench.prepared(case), bench.inputs(case)
    expected = bench.reference.prefill(inputs)
    features = bench.encode(prepared.pixel_values, prepared.image_grid_thw)
    rows = bench.embed(prepared.input_ids, features)
    logits = bench.decode(rows, prepared.attention_mask, prepared.position_ids)
    truth = _reference_logits(bench, expected, rows, inputs.attention_mask)
    return add_routing(truth, logits_finding(logits, truth.logits, inputs))


def teacher_forced(bench: Bench, case: Case) -> Finding:
    """The whole artifact over a prompt and a long text after it: logits at each token of the text.

    The text is fixed, so that both sides see the same history at every position, whatever they would have answered.
    `text_loss` is PyTorch's.
    """
    prepared, start = bench.prepared(case), bench.inputs(case)
    text = bench.forced_ids(case)
    text = np.broadcast_to(text, (len(start.input_ids), len(text)))
    expected = bench.reference.continued(start, text)
    inputs = start.followed_by(text)
    ids, mask = inputs.input_ids, inputs.attention_mask
    positions, _ = rope_index(ids, mask, prepared.image_grid_thw, bench.artifact.manifest.facts)
    features = bench.encode(prepared.pixel_values, prepared.image_grid_thw)
    rows = bench.embed(ids, features)
    logits = bench.decode(rows, mask, positions, text.shape[1])
    truth = RoutedLogits(expected.logits[:, 1:])
    if routing.is_compared(bench):
        truth = _reference_logits(bench, bench.reference.prefill(start).followed_by(expected), rows, mask)
    values = {**logit_closeness(logits, truth.logits), "text_loss": measures.text_loss(expected.logits[:, 1:], text)}
    return add_routing(truth, Finding(values, compared=logits.size))


def chunked(bench: Bench, case: Case) -> Finding:
    """The runtime's prefill in chunks against its prefill in one call: last logits, and the cache left behind.

    The cache holds every layer at every token, so no token's difference can hide behind the last one. Integers may
    differ by one where what was rounded is equal but for the order of sums: only what is beyond a step counts.
    """
    prepared = bench.prepared(case)
    chunks = (bench.matrix.chunk_of(prepared.input_ids.shape[1]), None)
    parts, whole = ask_all(partial(bench.prefill, prepared, chunk) for chunk in chunks)
    cache: Floats = parts.cache.astype(np.float32, copy=False)
    if whole.cache.dtype == np.int8:
        cache -= np.clip(cache - whole.cache, -1, 1)
    values = {
        "max_abs": max_abs(parts.logits, whole.logits),
        "scaled_max_abs": measures.relative(parts.logits, whole.logits),
        "cache_max_abs": max_abs(cache, whole.cache),
        "scaled_cache_max_abs": max(
            (in_units(max_abs(*layers), rms(layers[1])) for layers in zip(cache, whole.cache, strict=True)),
            key=_badness,
        ),
    }
    return Finding(values, compared=whole.cache.size)


def decode(bench: Bench, case: Case) -> Finding:
    """Each step of decoding with the cache, on the reference's tokens: logits of every new token."""
    expected = _greedy(bench, case)
    logits = _teacher_forced(bench, case, expected)
    truth = reference_step_logits(bench, case, expected)
    where = f"worst at step {worst_step(logits, truth.logits)} of {logits.shape[1]}"
    return add_routing(truth, Finding(logit_closeness(logits, truth.logits), compared=logits.size, where=where))


def generate(bench: Bench, case: Case) -> Finding:
    """The runtime's own greedy generation, token for token.

    Where the sides diverge at a near-tie, the steps after it are compared on the reference's tokens.
    """
    expected = _greedy(bench, case)
    steps = expected.ids.shape[1]
    generated = bench.generate(bench.prepared(case), steps)
    margin = bench.profile.settings["near_tie_margin"]
    divergences, prefixes = [], []
    for row, (ids, truth) in enumerate(zip(generated.ids.tolist(), expected.ids.tolist(), strict=True)):
        first = measures.common_prefix(ids, truth)
        prefixes.append(first)
        if first == steps:
            continue
        logits = _teacher_forced(bench, case, expected)[row].copy()
        logits[first] = generated.logits[row, first]  # up to here the histories are the same
        for step in range(first, steps):
            token = int(logits[step].argmax())
            if token != truth[step]:
                divergences.append(
                    measures.explain_difference(
                        row, step, token, logits[step], truth[step], expected.logits[row, step], margin
                    )
                )
    return differing_tokens(expected.ids.size, prefixes, divergences)


def differing_tokens(tokens: int, prefixes: Sequence[int], differences: Sequence[Difference]) -> Finding:
    """What greedy tokens are judged by.

    Args:
        tokens: that were compared.
        prefixes: number of equal tokens at the start of each row.
        differences: steps at which the sides chose differently.
    """
    bad = [difference for difference in differences if not difference.near_tie]
    where = (
        "row {0.row} parts at token {0.step}: {0.candidate_token}, not {0.reference_token}".format(*bad) if bad else ""
    )
    counts = {
        "tokens": tokens,
        "identical_prefix": min(prefixes),
        "near_ties": len(differences) - len(bad),
        "unexplained_differences": len(bad),
    }
    return Finding(counts, compared=tokens, where=where, differences=differences)


STAGES: dict[str, Callable[[Bench, Case], Finding]] = {
    "prompt": prompt,
    "preprocess": preprocess,
    "positions": positions,
    "vision": vision,
    "embeddings": embeddings,
    "decoder": decoder,
    "prefill": prefill,
    "teacher_forced": teacher_forced,
    "chunked": chunked,
    "decode": decode,
    "generate": generate,
}


def logits_finding(logits: Floats, expected: Floats, inputs: Inputs) -> Finding:
    """Closeness [B, N, V] over those of the last N tokens that are not padding."""
    measures.check_shapes(logits, expected)
    length, compared = inputs.input_ids.shape[1], logits.shape[1]
    seen = inputs.attention_mask[:, -compared:].astype(bool)
    if not seen.all():  # picking rows copies them
        logits, expected = logits[seen], expected[seen]
    row, token = np.argwhere(seen)[token_max_abs(logits, expected).argmax()].tolist()
    token += length - compared
    where = f"worst at row {row}, token {token} of {length} (id {inputs.input_ids[row, token]})"
    values = logit_closeness(logits, expected)
    return Finding(values if compared == length else {**values, "prompt_tokens": length}, logits.size, where)


def worst_step(logits: Floats, expected: Floats) -> int:
    """The step of [B, T, V] at which logits differ the most."""
    return int(token_max_abs(logits, expected).reshape(logits.shape[:2]).max(0).argmax())


def _greedy(bench: Bench, case: Case) -> Greedy:
    return bench.reference.generate(bench.inputs(case), bench.matrix.tokens_of(case))


def _teacher_forced(bench: Bench, case: Case, expected: Greedy) -> Floats:
    """Logits [B, T, V] of the decoder given the reference's prompt rows and, one by one, its tokens."""
    return bench.decode_steps(list(_steps(bench, case, expected)))


def _reference_logits(bench: Bench, expected: Prefill, rows: Floats, attention_mask: Ints) -> RoutedLogits:
    """PyTorch's logits to compare those of wide rows with; with experts maybe on the artifact's routes."""
    if not routing.is_compared(bench):
        return RoutedLogits(expected.logits)
    choices = routing.record_choices(bench, [(rows, attention_mask, expected.position_ids)])
    call = (expected.inputs_embeds, attention_mask, expected.position_ids)
    return routing.follow_routes(bench, expected.logits, choices, call)


def reference_step_logits(bench: Bench, case: Case, expected: Greedy) -> RoutedLogits:
    """As `_reference_logits`, for the logits [B, T, V] of every step; PyTorch reads prompt and tokens in one call."""
    if not routing.is_compared(bench):
        return RoutedLogits(expected.logits)
    calls = list(_steps(bench, case, expected))
    rows = np.concatenate([call[0].astype(np.float32) for call in calls], axis=1)
    position_ids = np.concatenate([call[2] for call in calls], axis=2)
    choices = routing.record_choices(bench, calls)
    return routing.follow_routes(bench, expected.logits, choices, (rows, calls[-1][1], position_ids))


def _steps(bench: Bench, case: Case, expected: Greedy) -> Iterator[DecoderCall]:
    """The decoder's calls over a case: PyTorch's prompt rows, then one by one its tokens."""
    start = bench.reference.prefill(bench.inputs(case))
    mask = bench.inputs(case).attention_mask
    tokens = mask.sum(1, keepdims=True)
    rows = bench.embed(expected.ids[:, :-1], bench.no_features())
    yield start.inputs_embeds, mask, start.position_ids
    for step in range(rows.shape[1]):
        mask = np.concatenate([mask, np.ones_like(mask[:, :1])], axis=1)
        yield (
            rows[:, step : step + 1],
            mask,
            np.broadcast_to(start.rope_deltas + tokens + step, (3, len(mask), 1)).copy(),
        )


def add_routing(truth: RoutedLogits, finding: Finding) -> Finding:
    """The finding with what was measured about routing."""
    return replace(finding, measures={**finding.measures, **truth.measures})


def _badness(value: float | None, sign: int = 1) -> float:
    """Sort key that ranks None and NaN as the worst."""
    return np.inf if value is None or np.isnan(value) else sign * value
