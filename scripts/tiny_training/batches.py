"""Samples to arrays: token ids, answers to learn, M-RoPE positions, packed segments, patches.

Knows the prompt layout (the same strings as chat_template.jinja) and needs no torch, so that it can run in a process
of its own. Batch n is a function of (seed, n), which is what makes a resumed training the same training.
Shapes: B samples, S tokens, P patches, M visual tokens.
"""

import multiprocessing
import random
from dataclasses import dataclass
from multiprocessing.queues import Queue
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from scripts.tiny_training.patches import IGNORE, MERGE, Grid, smart_resize, to_patches, token_labels
from scripts.tiny_training.samples import AREAS, Medium, Sample, choose, draw_sample, stage_at

SYSTEM = "You are a helpful assistant."
QUEUE_SIZE = 8
CACHE_SIZE = 200_000  # texts


@dataclass
class Batch:
    input_ids: np.ndarray  # (B, S)
    labels: np.ndarray  # (B, S), IGNORE outside answers
    position_ids: np.ndarray  # (3, B, S)
    segments: np.ndarray  # (B, S): 0 is seen by all, question i only by itself
    lengths: np.ndarray  # (B,) tokens of each row; the rest is padding
    kinds: list[str]  # of every answer, in order
    patches: np.ndarray | None  # (P, 1536) uint8
    grids: np.ndarray | None  # (pictures and clips, 3)
    positions: np.ndarray | None  # (pictures and clips,) whether the position table is used
    token_labels: np.ndarray | None  # (M, 4)


class Row:
    """One sample as it is written token by token; `position` is the next M-RoPE position."""

    def __init__(self, encoder: "Encoder") -> None:
        self.encoder = encoder
        self.ids: list[int] = []
        self.labels: list[int] = []
        self.segments: list[int] = []
        self.positions: list[np.ndarray] = []
        self.position = 0
        self.segment = 0

    def write(self, text: str, learn: bool = False) -> None:
        ids = self.encoder.ids(text)
        steps = np.arange(self.position, self.position + len(ids))
        self.append(ids, ids if learn else [IGNORE] * len(ids), np.stack([steps] * 3))
        self.position += len(ids)

    def place(self, pad: str, rows: int, columns: int) -> None:
        """One frame's visual tokens: a plane in time, rows and columns counted from the current position."""
        count = rows * columns
        y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
        offsets = np.stack([np.zeros(count, int), y.ravel(), x.ravel()])
        self.append(self.encoder.ids(pad) * count, [IGNORE] * count, self.position + offsets)
        self.position += max(rows, columns)

    def append(self, ids: list[int], labels: list[int], positions: np.ndarray) -> None:
        self.ids += ids
        self.labels += labels
        self.segments += [self.segment] * len(ids)
        self.positions.append(positions)


class Encoder:
    """Writes samples with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.cache: dict[str, list[int]] = {}
        self.pad = tokenizer.token_to_id("<|endoftext|>")

    def ids(self, text: str) -> list[int]:
        if text not in self.cache:
            if len(self.cache) > CACHE_SIZE:
                self.cache.clear()
            self.cache[text] = self.tokenizer.encode(text).ids
        return self.cache[text]

    def row(self, sample: Sample, grids: list[Grid]) -> Row:
        row = Row(self)
        if sample.system:
            row.write(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n")
        row.write("<|im_start|>user\n")
        for medium, grid in zip(sample.media, grids, strict=True):
            self.write_medium(row, medium, grid)
        shared = row.position
        for index, turn in enumerate(sample.turns):
            if sample.packed:
                row.segment, row.position = index + 1, shared
            elif index:
                row.write("\n<|im_start|>user\n")
            row.write(f"{turn.prompt}<|im_end|>\n<|im_start|>assistant\n")
            row.write(f"{turn.answer}<|im_end|>", learn=True)
        return row

    def write_medium(self, row: Row, medium: Medium, grid: Grid) -> None:
        steps, rows, columns = grid[0], grid[1] // MERGE, grid[2] // MERGE
        row.write("<|vision_start|>")
        if not medium.clip:
            row.place("<|image_pad|>", rows, columns)
        for step in range(steps if medium.clip else 0):
            seconds = step + 0.25  # mean of the two frames, at two frames a second
            row.write(f"<{seconds:.1f} seconds><|vision_start|>")
            row.place("<|video_pad|>", rows, columns)
            row.write("<|vision_end|>")
        row.write("<|vision_end|>")

    def batch(self, samples: list[Sample]) -> Batch:
        media = [(medium, sample.positions) for sample in samples for medium in sample.media]
        patched = [to_patches(medium.frames) for medium, _ in media]
        remaining = iter([grid for _, grid in patched])
        rows = [self.row(sample, [next(remaining) for _ in sample.media]) for sample in samples]
        batch = self.pad_rows(rows, patched)
        batch.kinds = [turn.kind for sample in samples for turn in sample.turns]
        if media:
            batch.positions = np.array([positions for _, positions in media])
            every = zip(media, patched, strict=True)
            batch.token_labels = np.concatenate([token_labels(medium, grid) for (medium, _), (_, grid) in every])
        return batch

    def pad_rows(self, rows: list[Row], patched: list[tuple[np.ndarray, Grid]]) -> Batch:
        """Rows of any length, padded behind their tokens, with the patches and grids of their media."""
        lengths = np.array([len(row.ids) for row in rows])
        shape = len(rows), lengths.max()
        input_ids, labels = np.full(shape, self.pad), np.full(shape, IGNORE)
        position_ids, segments = np.zeros((3, *shape), int), np.zeros(shape, int)
        for index, (row, end) in enumerate(zip(rows, lengths, strict=True)):
            input_ids[index, :end], labels[index, :end], segments[index, :end] = row.ids, row.labels, row.segments
            position_ids[:, index, :end] = np.concatenate(row.positions, axis=1)
        batch = Batch(input_ids, labels, position_ids, segments, lengths, [], None, None, None, None)
        if patched:
            batch.patches = np.concatenate([patches for patches, _ in patched])
            batch.grids = np.array([grid for _, grid in patched])
            batch.positions = np.ones(len(patched), bool)
        return batch

    def estimate_length(self, sample: Sample) -> int:
        visual = sum(
            np.prod(smart_resize(*m.frames[0].size)) // 1024 * max(1, len(m.frames) // 2) for m in sample.media
        )
        return int(visual) + sum(10 + len(self.ids(turn.prompt)) + len(self.ids(turn.answer)) for turn in sample.turns)


def sample_pair(encoder: Encoder, seed: int, pair: int, progress: float) -> list[list[Sample]]:
    """Two batches of one area: short samples in one and long samples in the other, so that little is padding."""
    rng = random.Random(f"train-{seed}-{pair}")
    stage = stage_at(progress)
    area = choose(rng, stage.areas)
    size = AREAS[area][1]
    samples = [draw_sample(rng, stage, area) for _ in range(2 * size)]
    samples.sort(key=encoder.estimate_length)
    halves = [samples[: round(1.2 * size)], samples[round(1.2 * size) :]]
    rng.shuffle(halves)
    return halves


def stream(tokenizer_file: Path, seed: int, start: int, steps: int, shards: int) -> list[Queue]:
    """Queues that a process fills with the batches of steps `start`, `start` + 1, ..., each dealt out to all."""
    context = multiprocessing.get_context("spawn")
    queues = [context.Queue(QUEUE_SIZE) for _ in range(shards)]
    context.Process(target=fill, args=(queues, tokenizer_file, seed, start, steps), daemon=True).start()
    return queues


def fill(queues: list[Queue], tokenizer_file: Path, seed: int, start: int, steps: int) -> None:
    encoder = Encoder(Tokenizer.from_file(str(tokenizer_file)))
    for pair in range(start // 2, (steps + 1) // 2):
        for offset, samples in enumerate(sample_pair(encoder, seed, pair, progress=2 * pair / steps)):
            if 2 * pair + offset >= start:
                for shard, queue in enumerate(queues):  # neighbours in length go to different shards
                    queue.put(encoder.batch(samples[shard :: len(queues)]))
