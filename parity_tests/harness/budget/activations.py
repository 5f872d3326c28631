"""The bytes that a case takes while it is computed and compared: activations, caches, logits and their copies.

Everything that PyTorch computes is float32, and what is compared is compared in float64. Knows sizes; nothing about
weights.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from qwen3vl_export.contract import TEXT
from qwen3vl_export.runtime.cache import round_up_capacity

from ..judging.measures import BLOCK, THREADS
from ..sides.artifact.artifact_results import REMEMBERED
from ..sides.pytorch.attention import MOST_SCORES
from ..sides.pytorch.results import REMEMBERED_BYTES
from .sizes import Call, CaseSizes, ModelSizes

FLOAT32 = 4  # bytes
SCORES = 3  # copies of the scores in eager attention, with those of the mask
SWIGLU = 3  # arrays as wide as an MLP in memory together: gate, up and their product
PIXELS = 4  # copies of a case's: of both sides, and while each is made
COPIES = 2  # of logits: what computes them has its own beside the array that it returns
READS = 3  # of a prompt alone in step with those before text and tokens: for its logits, and twice for `chunked`
CACHES = 4  # that the stage `chunked` compares: two, each stacked as well
COMPARED = 40  # bytes for each value that is compared at a time: five copies in float64
CASES = 2  # whose results of PyTorch are in memory together: those of the first reference stay beside the second's


@dataclass(frozen=True)
class Need:
    """The bytes of a call that goes through the model in step with others.

    Attributes:
        held: while it waits for a module.
        passing: more, while it runs through one.
    """

    held: int
    passing: int

    @property
    def total(self) -> int:
        return self.held + self.passing


def need_of(model: ModelSizes, call: Call) -> Need:
    """What PyTorch takes for a call with its result, beside the model's weights."""
    tokens, patches = call.rows * call.tokens, call.patches
    layer = SCORES * stored(call.rows * model.heads * call.tokens**2)
    layer += tokens * (2 * model.heads * model.head_dim + SWIGLU * model.active + 2 * model.hidden)
    block = SCORES * max((stored(model.tower_heads * frame**2) for frame in call.frames), default=0)
    block += patches * (3 * model.tower_hidden + 2 * model.tower_intermediate)
    head = tokens * (model.hidden + model.wide) + COPIES * call.rows * call.logits * model.output
    return Need(FLOAT32 * model.held(call), FLOAT32 * max(layer, block, head))


def stored(scores: int) -> int:
    """Scores of a call of attention that are stored: all of them, unless there are too many."""
    return scores if scores <= MOST_SCORES else 0


def cache_of(model: ModelSizes, case: CaseSizes) -> int:
    """Bytes of the keys and values of a case's prompt in every layer."""
    if case.pixels_only:
        return 0
    return FLOAT32 * case.rows * case.tokens * values_of_token(model)


def values_of_token(model: ModelSizes) -> int:
    """How many keys and values a token has in every layer."""
    return model.layers * 2 * model.kv_heads * model.head_dim


def held_of(model: ModelSizes, case: CaseSizes) -> int:
    """Bytes that the artifact holds of a case while its pieces are exchanged: its prompt is read before text, before
    tokens, and some times alone."""
    if case.pixels_only:
        return 0
    answered = held_between(model, case.rows, case.tokens, case.new)
    if case.asked:
        return answered
    followed = held_between(model, case.rows, case.tokens + case.forced)
    return answered + followed + READS * held_between(model, case.rows, case.tokens)


def held_between(model: ModelSizes, rows: int, tokens: int, new: int = 0) -> int:
    """Bytes that a prompt [B, S] and as many new tokens after it take in float32 between two pieces of the artifact:
    the cache, the prompt's rows as they came and as they are passed on, logits of the new tokens."""
    values = blocks_of(tokens + new) * values_of_token(model) + 2 * tokens * model.wide + new * model.output
    return FLOAT32 * rows * values


def blocks_of(tokens: int) -> int:
    """As many tokens as the runtime makes room for in a cache."""
    return round_up_capacity(tokens, sys.maxsize) if tokens else 0


def results_of(model: ModelSizes, case: CaseSizes) -> int:
    """Bytes of PyTorch's results of a case: features, rows, and the logits that are compared."""
    call = case.joined
    features = call.patches // model.merge_unit * model.wide
    if case.asked:
        return FLOAT32 * features
    rows = call.rows * (call.tokens * model.wide + call.logits * model.output)
    return FLOAT32 * (2 * features + (2 if is_read_twice(model, case) else 1) * rows)


def is_read_twice(model: ModelSizes, case: CaseSizes) -> bool:
    """Whether PyTorch reads the prompts of a case padded on either side: those of a batch, for what `embed` and
    `rerank` return."""
    return model.head != TEXT and case.rows > 1


def outputs_of(model: ModelSizes, case: CaseSizes) -> int:
    """Bytes of the artifact's results of a case that wait on disk for PyTorch's: as `results_of`, but the prompt's are
    there twice, of `decoder` and of `prefill`, and there are the caches of `chunked`."""
    if case.pixels_only or case.asked:
        return 0
    twice = case.rows * (case.tokens * model.wide + case.compared * model.output)
    return results_of(model, case) + FLOAT32 * twice + 2 * cache_of(model, case)


def running_of(model: ModelSizes, case: CaseSizes) -> int:
    """Bytes that the artifact takes to compute a result of a case, beside its weights and the caches of other results.

    The artifact's attention in the tower stores no scores; its decoder's does, once.
    """
    pixels = FLOAT32 * PIXELS * case.encoder.patches * model.patch_dim
    if case.pixels_only:
        return pixels
    longest = case.tokens + max(case.forced, case.new)
    computing = (
        case.encoder.patches * (4 * model.tower_hidden + 2 * model.tower_intermediate)
        + case.rows * model.heads * longest**2
        + case.rows * longest * (SWIGLU * model.active + model.hidden + model.wide)
        + COPIES * logits_of(model, case)
    )
    return pixels + FLOAT32 * computing + cache_of(model, case)


def logits_of(model: ModelSizes, case: CaseSizes) -> int:
    """How many values of the decoder's output the largest result of a case has."""
    kept = 1 if case.asked else max(case.compared, case.forced, case.new)
    return case.rows * kept * model.output


def comparing_of(model: ModelSizes, case: CaseSizes) -> int:
    """Bytes that the artifact takes for a case, beside its weights, and the comparison with PyTorch's results."""
    running = running_of(model, case)
    if case.pixels_only:
        return running
    if case.asked:  # what is compared are tokens
        return running
    logits, cache = logits_of(model, case), cache_of(model, case)
    comparing = FLOAT32 * COPIES * logits + COMPARED * min(THREADS * BLOCK, max(logits, cache // FLOAT32))
    remembered = min(CASES * results_of(model, case), CASES * REMEMBERED_BYTES + FLOAT32 * logits)
    remembered += min(outputs_of(model, case), REMEMBERED + FLOAT32 * logits)
    return running + (CACHES - 1) * cache + comparing + remembered
