"""What becomes of the decoder's output at the last token of each input: embeddings, and scores of pairs.

Knows numbers; nothing about prompts.
"""

from __future__ import annotations

import numpy as np

from ..contract import NO, YES
from ..errors import ArtifactError, InputError
from .arrays import Float32, Floats

LEAST_NORM = 1e-12  # as torch.nn.functional.normalize


def check_dimensions(dimensions: int | None, hidden_size: int) -> int:
    """The number of dimensions to return; None is all.

    Raises:
        InputError: it is below 1 or above the model's.
    """
    if dimensions is None:
        return hidden_size
    if not 1 <= dimensions <= hidden_size:
        raise InputError(f"dimensions is {dimensions}", f"Use 1 to {hidden_size}, the size of the model's embeddings")
    return dimensions


def embeddings_of(hidden: Floats, dimensions: int, normalize: bool) -> Float32:
    """The leading `dimensions` of last hidden states [N, H], float32; each of length 1 if `normalize`.

    Source: `Qwen3VLEmbedder.process` of QwenLM/Qwen3-VL-Embedding; Matryoshka Representation Learning
    (arXiv:2205.13147) for leading dimensions, which are normalized again.

    Raises:
        ArtifactError: a value is NaN or infinite.
    """
    check_finite(hidden)
    vectors = hidden[:, :dimensions].astype(np.float64)
    if normalize:
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), LEAST_NORM)
    return vectors.astype(np.float32)


def scores_of(logits: Floats) -> Float32:
    """The probability of `yes` against `no` for logits [N, 2]: float32 [N], from 0 to 1.

    Source: `Qwen3VLReranker.compute_scores` of QwenLM/Qwen3-VL-Embedding.

    Raises:
        ArtifactError: a value is NaN or infinite.
    """
    check_finite(logits)
    margin = logits[:, YES].astype(np.float64) - logits[:, NO]
    scores = np.exp(-np.logaddexp(0.0, -margin))
    return scores.astype(np.float32)


def check_finite(values: Floats) -> None:
    if not np.isfinite(values).all():
        raise ArtifactError("the decoder returned NaN or infinity", "Build the artifact in float32")
