"""Search with the tiny models: pictures are ranked as in PyTorch; the trained one finds the right picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qwen3vl_export.contract import EMBEDDING
from qwen3vl_export.runtime import Image
from qwen3vl_export.runtime.arrays import Float32

from ...harness import verify
from ...harness.cases.gallery import SEARCH, GalleryPicture, gallery
from ...harness.cases.matrix import Prompt
from ...harness.checks.heads import outputs_of
from ...harness.sides.bench import FPS
from ...harness.sides.pytorch.head_reference import HeadPrompts, normalized, scored

NEAR_TIE = 1e-5  # cosines and scores that are closer may change places
QUERIES, CANDIDATES = 3, 5  # of the reranker, whose checkpoint was not trained to rank


@pytest.fixture(scope="module")
def pictures() -> list[GalleryPicture]:
    return gallery()


def assert_same_ranks(values: Float32, truth: Float32) -> None:
    """Both are [queries, documents]."""
    ranked = np.take_along_axis(truth, np.argsort(-values, axis=1), axis=1)
    assert np.diff(ranked, axis=1).max() < NEAR_TIE
    assert np.abs(values - truth).max() < NEAR_TIE


def test_captions_rank_pictures_as_in_pytorch(pictures: list[GalleryPicture], built: Callable[[str], Path]) -> None:
    bench = verify.open_bench(built("tiny-embedding"), "quick")
    captions, images = [picture.caption for picture in pictures], [picture.image for picture in pictures]
    queries = bench.runtime.embed(captions, instruction=SEARCH)
    cosines = queries @ bench.runtime.embed([Image(image) for image in images]).T
    asked = HeadPrompts(bench.checkpoint, FPS, EMBEDDING, SEARCH)
    truth = normalized(outputs_of(bench, [Prompt((), (), caption) for caption in captions], asked))
    truth = (
        truth @ normalized(outputs_of(bench, [Prompt((image,), (), "") for image in images], bench.prompt_reference)).T
    )
    assert_same_ranks(cosines, truth)
    right = cosines.argmax(axis=1) == np.arange(len(pictures))
    assert right.mean() >= 0.9
    assert right.tolist() == (truth.argmax(axis=1) == np.arange(len(pictures))).tolist()


def test_a_reranker_ranks_pictures_as_in_pytorch(pictures: list[GalleryPicture], built: Callable[[str], Path]) -> None:
    bench = verify.open_bench(built("tiny-reranker"), "quick")
    groups = [pictures[start : start + CANDIDATES] for start in range(0, QUERIES * CANDIDATES, CANDIDATES)]
    pairs = [(group[index % CANDIDATES].caption, group) for index, group in enumerate(groups)]
    scores = np.stack([bench.runtime.rerank(query, [Image(p.image) for p in group]) for query, group in pairs])
    prompts = [Prompt((picture.image,), (), query) for query, group in pairs for picture in group]
    truth = scored(outputs_of(bench, prompts, bench.prompt_reference)).reshape(scores.shape)
    assert_same_ranks(scores, truth)
