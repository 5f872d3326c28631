"""What the memory and time of a verification follow from: the sizes of a model, and the tokens and patches of a case.

A case's sizes come from its line in the matrix and the checkpoint's pixel rules: no picture is drawn, no prompt is
rendered. Tokens of text are counted by the tokenizer, those of the chat template and of timestamps are rounded up.

Legend: B rows, S tokens, P patches, N image tokens.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from qwen3vl_export.contract import EMBEDDING, RERANKER, TEXT, Facts
from qwen3vl_export.errors import ParityError, Qwen3VLExportError
from qwen3vl_export.runtime.prepare import Preparer
from qwen3vl_export.runtime.retrieval import embedding_conversation, reranker_conversation

from ..cases.fitting import frames_of
from ..cases.matrix import Case, Matrix
from ..cases.tasks import Question
from ..sides.pytorch.inputs import count_compared

TEMPLATE_TOKENS = 16  # of a chat template around a question
MARKER_TOKENS = 2  # around a picture
TIMESTAMP_TOKENS = 10  # around a frame of a video, its time among them


@dataclass(frozen=True)
class ModelSizes:
    """The sizes of a decoder and its vision tower.

    Attributes:
        active: width of what one token passes in a layer's MLP, over all its experts.
        maps: number of DeepStack maps.
        head: what the last hidden states are for.
    """

    layers: int
    hidden: int
    active: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    maps: int
    blocks: int
    tower_hidden: int
    tower_intermediate: int
    tower_heads: int
    patch_dim: int
    merge_unit: int
    head: str = TEXT

    @classmethod
    def of(cls, config: Any, head: str = TEXT) -> ModelSizes:
        """Those of a configuration of transformers'."""
        text, vision = config.text_config, config.vision_config
        experts = getattr(text, "num_experts_per_tok", 0)
        return cls(
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            active=experts * text.moe_intermediate_size if experts else text.intermediate_size,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            vocabulary=text.vocab_size,
            maps=len(vision.deepstack_visual_indexes),
            blocks=vision.depth,
            tower_hidden=vision.hidden_size,
            tower_intermediate=vision.intermediate_size,
            tower_heads=vision.num_heads,
            patch_dim=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
            merge_unit=vision.spatial_merge_size**2,
            head=head,
        )

    @property
    def output(self) -> int:
        """Width of what the head returns of a token: logits of the vocabulary or of two answers, or a hidden state."""
        return {TEXT: self.vocabulary, EMBEDDING: self.hidden, RERANKER: 2}[self.head]

    @property
    def wide(self) -> int:
        """W, the width of features and rows with their DeepStack maps."""
        return (1 + self.maps) * self.hidden

    def held(self, call: Call) -> int:
        """How many numbers a call of PyTorch holds while it waits for a module: pixels, features, and patches or tokens
        with their mask."""
        features = call.patches // self.merge_unit * self.wide
        rows = call.rows * call.tokens * (self.hidden + self.wide + 2 * self.head_dim)
        mask = call.rows * call.tokens**2
        patches = call.patches * (1 + self.maps) * self.tower_hidden
        return call.patches * self.patch_dim + features + max(patches, rows + mask)

    @property
    def layer_parameters(self) -> int:
        """Weights that a token is multiplied with in one layer of the decoder."""
        return self.hidden * (2 * self.heads + 2 * self.kv_heads) * self.head_dim + 3 * self.hidden * self.active

    @property
    def block_parameters(self) -> int:
        """As `layer_parameters`, of a patch in one block of the tower."""
        return 4 * self.tower_hidden**2 + 2 * self.tower_hidden * self.tower_intermediate


@dataclass(frozen=True)
class Call:
    """One call of a model, as a whole or in part.

    Attributes:
        tokens: of each row, padding included.
        logits: of each row, how many tokens it returns logits of.
        frames: patches of each frame; they do not attend to each other.
    """

    rows: int = 1
    tokens: int = 0
    logits: int = 0
    frames: tuple[int, ...] = ()

    @property
    def patches(self) -> int:
        return sum(self.frames)


@dataclass(frozen=True)
class CaseSizes:
    """The sizes of a case of the matrix.

    Attributes:
        tokens: of each row's prompt, padding included; none of a case for the encoder alone.
        compared: how many of them are compared by their logits.
        forced: tokens of text that both sides read after it.
        new: tokens that are decoded after it.
        frames: patches of each frame of its pictures.
        pixels_only: whether no model is run, and only prompt and pixels are compared.
        asked: whether it is a question, of which answers are stored, and neither rows nor logits.
    """

    name: str
    rows: int = 0
    tokens: int = 0
    compared: int = 0
    forced: int = 0
    new: int = 0
    frames: tuple[int, ...] = ()
    pixels_only: bool = False
    asked: bool = False

    @cached_property
    def encoder(self) -> Call:
        return Call(frames=self.frames)

    @cached_property
    def prompt(self) -> Call:
        return Call(self.rows, self.tokens, self.compared)

    @cached_property
    def text(self) -> Call:
        """The prompt and the text after it."""
        return Call(self.rows, self.tokens + self.forced, self.forced)

    @cached_property
    def joined(self) -> Call:
        """All that PyTorch is asked for about the case in one call: pictures, prompt, text, and the decoded tokens."""
        if self.pixels_only:
            return Call()
        if not self.tokens:
            return self.encoder
        tokens, logits = (count + self.forced + self.new for count in (self.tokens, self.compared))
        return Call(self.rows, tokens, logits, self.frames)


def sizes_of(
    cases: Iterable[Case], matrix: Matrix, preparer: Preparer, pixels_only: Container[str] = ()
) -> list[CaseSizes]:
    """The sizes of cases, as an artifact's runtime prepares them.

    Args:
        pixels_only: names of the cases that no model is run on.
    """
    sizes = [case_sizes(case, matrix, preparer) for case in cases]
    return [replace(case, pixels_only=True) if case.name in pixels_only else case for case in sizes]


def case_sizes(case: Case, matrix: Matrix, preparer: Preparer) -> CaseSizes:
    """The sizes of a case; none if it cannot be prepared, for then its checks compute nothing."""
    if case.is_vision_only:
        frames = [height * width for time, height, width in case.grid_thw.tolist() for _ in range(time)]
        return CaseSizes(case.name, frames=tuple(frames))
    rows, pictures = [], list[int]()
    try:
        for prompt in case.prompts:
            frames = [patches for picture in prompt.pictures for patches in frames_of(picture, preparer.sizing)]
            text = len(preparer.tokenizer.encode(text_of(matrix.question(case, prompt), bool(frames), preparer.facts)))
            markers = len(frames) * (TIMESTAMP_TOKENS if prompt.video else MARKER_TOKENS)
            rows.append(TEMPLATE_TOKENS + text + markers + sum(frames) // preparer.facts.merge_unit)
            pictures += frames
    except Qwen3VLExportError:
        return CaseSizes(case.name)
    facts = preparer.facts
    return CaseSizes(
        case.name,
        rows=len(rows),
        tokens=max(rows),
        compared=count_compared(len(rows), max(rows), facts.vocab_size, facts.head),
        forced=matrix.forced_tokens if facts.head == TEXT else 0,
        new=matrix.tokens_of(case) if facts.head == TEXT else 0,
        frames=tuple(pictures),
    )


def question_sizes(question: Question, preparer: Preparer) -> CaseSizes:
    """The sizes of a question to a model that answers.

    Raises:
        ParityError: a picture of a size that the model does not take, or a question longer than its context.
    """
    facts = preparer.facts
    try:
        grids = [preparer.sizing.of_image(height, width, None) for width, height in question.sizes]
    except Qwen3VLExportError as error:
        raise ParityError(f"{question.where}: {error.what}", error.next) from None
    frames = tuple(height * width for height, width in grids)
    text = len(preparer.tokenizer.encode(question.ask))
    tokens = TEMPLATE_TOKENS + text + MARKER_TOKENS * len(frames) + sum(frames) // facts.merge_unit
    if tokens + question.new_tokens > facts.max_position_embeddings:
        raise ParityError(
            f"{question.where}: about {tokens:,} tokens and {question.new_tokens:,} of an answer, the context holds "
            f"{facts.max_position_embeddings:,}",
            "Shorten the question, or use fewer or smaller pictures",
        )
    return CaseSizes(question.name, 1, tokens, 1, 0, question.new_tokens, frames, asked=True)


def text_of(question: str, has_pictures: bool, facts: Facts) -> str:
    """What a prompt says beside its pictures, as the head of the model takes it (`Bench.conversation`)."""
    if facts.head == TEXT:
        return question
    messages = (
        embedding_conversation(question, None, facts)
        if facts.head == EMBEDDING
        else reranker_conversation(question, "" if has_pictures else question, None, facts)
    )
    return "\n".join(text for message in messages for text in message["content"])
