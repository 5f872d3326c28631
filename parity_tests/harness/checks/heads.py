"""The checks of models that embed or rerank, in place of those of logits and tokens.

`hidden_states` and `answer_logits` compare the decoder alone at every token, on PyTorch's rows. `embedding` and `score`
are end to end: what `embed` and `rerank` return against transformers' model over prompts, pixels and padding of its
own side, pooled as the public code does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qwen3vl_export.runtime.arrays import Float32

from ..cases.matrix import Case, Prompt
from ..judging.measures import check_shapes, closeness, max_abs, relative
from ..judging.outcome import Finding
from ..sides.bench import Bench
from ..sides.pytorch.head_reference import last_rows, normalized, right_padded, scored
from ..sides.pytorch.pixel_reference import Grid
from ..sides.pytorch.prompt_reference import PromptReference


def hidden_states(bench: Bench, case: Case) -> Finding:
    """Hidden states after the final norm, at every token of the prompt; `scaled_max_abs` is in units of the largest."""
    candidate, truth = decoder_outputs(bench, case)
    measured = closeness(candidate, truth)
    where = f"worst at token {measured['worst_token']} of {len(truth)}"
    return Finding({**measured, "scaled_max_abs": measured["relative"]}, compared=truth.size, where=where)


def answer_logits(bench: Bench, case: Case) -> Finding:
    """Logits of yes and no, at every token of the prompt; `scaled_max_abs` is in units of the largest."""
    candidate, truth = decoder_outputs(bench, case)
    values = {"max_abs": max_abs(candidate, truth), "scaled_max_abs": relative(candidate, truth)}
    return Finding(values, compared=truth.size, where=f"yes and no of the last token are {candidate[-1].tolist()}")


def decoder_outputs(bench: Bench, case: Case) -> tuple[Float32, Float32]:
    """The decoder's outputs over the reference's rows and positions, and the reference's, of tokens that are not
    padding: each [tokens, width]."""
    inputs = bench.inputs(case)
    expected = bench.reference.prefill(inputs)
    outputs = bench.decode(expected.inputs_embeds, inputs.attention_mask, expected.position_ids)
    check_shapes(outputs, expected.logits)
    seen = inputs.attention_mask.astype(bool)
    return outputs[seen], expected.logits[seen]


def embedding(bench: Bench, case: Case) -> Finding:
    """The embeddings of a case's prompts."""
    truth = normalized(last_outputs(bench, case))
    vectors = bench.vectors(case)
    lengths = np.linalg.norm(vectors, axis=1)
    measured = closeness(vectors, truth) | {"length_error": max_abs(lengths, np.ones_like(lengths))}
    return Finding(measured, compared=truth.size, where=f"worst is prompt {measured['worst_token']} of {len(truth)}")


def score(bench: Bench, case: Case) -> Finding:
    """The scores of a case's prompts, each a pair."""
    truth = scored(last_outputs(bench, case))
    scores = bench.pair_scores(case)
    where = f"scores {np.round(scores, 6).tolist()}, the reference has {np.round(truth, 6).tolist()}"
    return Finding({"max_abs": max_abs(scores, truth)}, compared=truth.size, where=where)


def last_outputs(bench: Bench, case: Case) -> Float32:
    """PyTorch's output [B, width] at the last token of each prompt of a case."""
    bound = [tuple(grid[1:]) for grid in bench.inputs(case).image_grid_thw.tolist()] if bench.fixed_grids else None
    return outputs_of(bench, bench.prompts(case), bench.prompt_reference, bound)


def outputs_of(
    bench: Bench, prompts: Sequence[Prompt], tokens: PromptReference, bound: Sequence[Grid] | None = None
) -> Float32:
    """PyTorch's output [B, width] at the last token of each prompt, from inputs of its own.

    Args:
        tokens: what makes tokens of a prompt.
        bound: (h, w) in patches for each picture, where the artifact is bound to fixed grids.
    """
    grids, pixels = np.zeros((0, 3), np.int64), np.zeros((0, bench.artifact.manifest.facts.patch_dim), np.float32)
    if any(prompt.images or prompt.frames for prompt in prompts):
        grids, pixels = bench.pixel_reference(prompts, bound)
    rows = tokens(prompts, grids)
    inputs = right_padded(rows, bench.runtime.preparer.pad_id, pixels, grids)
    return last_rows(bench.reference.prefill(inputs).logits, inputs.attention_mask)


HEAD_STAGES: dict[str, Callable[[Bench, Case], Finding]] = {
    "hidden_states": hidden_states,
    "answer_logits": answer_logits,
    "embedding": embedding,
    "score": score,
}
