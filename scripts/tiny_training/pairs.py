"""What the tiny embedding model and the tiny reranker are trained on: drawn pictures, and captions that fit or do not.

Knows captions and the runtime's own conversations, so that training reads what `embed` and `rerank` read. Batch n is a
function of (seed, n). Shapes: B pictures, C captions.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from parity_tests.harness.cases.gallery import MOST_THINGS, SEARCH, Caption, change, draw_captioned_scene
from parity_tests.harness.cases.scenes import DrawnScene
from qwen3vl_export.contract import Facts
from qwen3vl_export.runtime import Image
from qwen3vl_export.runtime.retrieval import embedding_conversation, reranker_conversation
from scripts.tiny_training.batches import Batch, Encoder, Row
from scripts.tiny_training.patches import Grid, to_patches
from scripts.tiny_training.samples import Medium

PARTIAL = 0.25  # share of captions that name some of the shapes, half of these without places
CHANGED = 0.5  # share of captions that are told from one with another word
ALIKE = 0.6  # share of a reranker's wrong captions that differ from a right one in a word, at the end of the training

Conversation = list[dict[str, Any]]


@dataclass
class EmbeddingPairs:
    captions: Batch
    pictures: Batch
    fits: np.ndarray  # bool (C, B); caption i is of picture i, captions from B on were changed


@dataclass
class RerankerPairs:
    pairs: Batch
    fits: np.ndarray  # bool (2 B,)


class Drawer:
    """Draws the batches of one training.

    Args:
        facts: of the checkpoint.
        count: pictures in a batch.
    """

    def __init__(self, encoder: Encoder, facts: Facts, seed: int, count: int) -> None:
        self.encoder, self.facts, self.seed, self.count = encoder, facts, seed, count

    def embedding_pairs(self, index: int) -> EmbeddingPairs:
        """Captions, half of them with the instruction of a search, and pictures."""
        rng = random.Random(f"train-embedding-{self.seed}-{index}")
        scenes = [draw_captioned_scene(rng) for _ in range(self.count)]
        captions = [draw_caption(rng, scene) for scene in scenes]
        captions += [change(rng, caption) for caption in captions if rng.random() < CHANGED]
        texts = [embedding_conversation(caption.text, rng.choice((SEARCH, None)), self.facts) for caption in captions]
        pictures = [embedding_conversation(Image(scene.image), None, self.facts) for scene in scenes]
        fits = np.array([[caption.fits(scene) for scene in scenes] for caption in captions])
        return EmbeddingPairs(self.batch(texts), self.batch(pictures), fits)

    def reranker_pairs(self, index: int, progress: float) -> RerankerPairs:
        """Each picture with a caption that fits and one that does not, from easy to hard."""
        rng = random.Random(f"train-reranker-{self.seed}-{index}")
        conversations, fits = [], []
        for _ in range(self.count):
            scene = draw_captioned_scene(rng, most=MOST_THINGS if rng.random() < progress else 1)
            right = wrong = draw_caption(rng, scene)
            while wrong.fits(scene):
                is_alike = rng.random() < ALIKE * progress
                wrong = change(rng, right) if is_alike else draw_caption(rng, draw_captioned_scene(rng))
            for caption in (right, wrong):
                conversations.append(reranker_conversation(caption.text, Image(scene.image), None, self.facts))
                fits.append(caption is right)
        return RerankerPairs(self.batch(conversations), np.array(fits))

    def batch(self, conversations: list[Conversation]) -> Batch:
        images = [part for turns in conversations for turn in turns for part in turn["content"] if is_image(part)]
        patched = [to_patches((image.source,)) for image in images]
        grids = iter([grid for _, grid in patched])
        return self.encoder.pad_rows([self.row(turns, grids) for turns in conversations], patched)

    def row(self, turns: Conversation, grids: Iterator[Grid]) -> Row:
        row, text = Row(self.encoder), ""
        for turn in turns:
            text += f"<|im_start|>{turn['role']}\n"
            for part in turn["content"]:
                if is_image(part):
                    row.write(text)
                    self.encoder.write_medium(row, Medium((part.source,)), next(grids))
                    text = ""
                else:
                    text += part
            text += "<|im_end|>\n"
        row.write(f"{text}<|im_start|>assistant\n")
        return row


def is_image(part: object) -> bool:
    return isinstance(part, Image)


def draw_caption(rng: random.Random, scene: DrawnScene) -> Caption:
    if rng.random() < PARTIAL:
        things = rng.sample(scene.things, rng.randint(1, len(scene.things)))
        return Caption(tuple(things), placed=rng.random() < 0.5)
    return Caption(scene.things)
