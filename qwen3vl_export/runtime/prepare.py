"""Conversations to the arrays the graphs read: what transformers calls a processor.

Knows how text, pictures and positions fit together; runs no graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..artifact import Artifact
from ..contract import Facts
from ..errors import InputError
from . import positions
from .arrays import Float32, Ints
from .pictures.fetch import PUBLIC, UrlRules
from .pictures.frames import FrameRules, read_frame_rules
from .pictures.images import Image, open_image
from .pictures.picture import Picture
from .pictures.preprocess import frames_to_patches, image_to_patches
from .pictures.video import Video, open_video
from .prompts import prompt
from .prompts.messages import Message, split_media
from .prompts.plain_text import AsSpelled, PlainText
from .prompts.templates import choose_template, read_templates
from .prompts.tokenizer import Tokenizer
from .sizing import VIDEO_RULES, Sizing


@dataclass(frozen=True)
class Prepared:
    """A batch of B prompts of at most S tokens, with all their I pictures.

    Shorter rows are padded on the left. `image_grid_thw` and `is_video` are in the order of the tokens, row after row;
    a video of t merged frames is one row of the grid.
    """

    texts: tuple[str, ...]  # the prompts, placeholders expanded
    input_ids: Ints  # int64 [B, S]
    attention_mask: Ints  # int64 [B, S], 0 on padding
    position_ids: Ints  # int64 [3, B, S]
    rope_deltas: Ints  # int64 [B, 1]; the next position of a row is this plus its number of tokens
    pixel_values: Float32  # float32 [P, patch_dim]
    image_grid_thw: Ints  # int64 [I, 3]
    is_video: tuple[bool, ...]  # one entry per picture


class Preparer:
    """Prepares conversations for one artifact.

    Args:
        url_rules: limits for URLs of pictures.
        min_pixels, max_pixels: as for `Sizing`.

    Raises:
        ArtifactError: no usable tokenizer, or an unknown rule to choose among encoders.
        InputError: a number of pixels that is not possible.
    """

    def __init__(
        self,
        artifact: Artifact,
        url_rules: UrlRules = PUBLIC,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> None:
        self.artifact = artifact
        self.url_rules = url_rules
        self.facts: Facts = artifact.manifest.facts
        self.sizing = Sizing(artifact, min_pixels, max_pixels)
        self.tokenizer = Tokenizer(artifact.root)
        self.image_token = self.tokenizer.token(self.facts.image_token_id)
        self.video_token = self.tokenizer.token(self.facts.video_token_id)

    @cached_property
    def frame_rules(self) -> FrameRules:
        return read_frame_rules(self.artifact.json_file(VIDEO_RULES), VIDEO_RULES)

    @cached_property
    def templates(self) -> dict[str, prompt.ChatTemplate]:
        return read_templates(self.artifact, self.tokenizer.config)

    @cached_property
    def pad_id(self) -> int:
        """The token that pads short rows; its value does not matter, because it is masked."""
        token_id = self.tokenizer.id_of(self.tokenizer.special.get("pad_token", ""))
        return 0 if token_id is None else token_id

    def __call__(
        self,
        conversations: Sequence[Sequence[Message]],
        plain_text: bool = False,
        shorten: Callable[[list[int]], list[int]] | None = None,
        **variables: Any,
    ) -> Prepared:
        """One row for each conversation; `variables` are passed to the chat template.

        Args:
            plain_text: control tokens spelled in the messages are ordinary text, as `plain_text` defines that.
            shorten: token ids to those of them that are read, in place of an error if there are too many.

        Raises:
            InputError: a picture or a message that cannot be used, or a prompt longer than the context.
        """
        if not conversations:
            raise InputError("no conversation was given", "Pass at least one")
        texts, rows, pictures = [], [], []
        template = choose_template(self.templates, variables)
        for conversation in conversations:
            messages, media = split_media(conversation, template.names.words)
            shown = [self.picture(medium) for medium in media]
            reading = (PlainText if plain_text else AsSpelled)(messages, variables, self.tokenizer)
            text = prompt.render(template.compiled, reading.messages, self.tokenizer.special, **reading.variables)
            replacements = [(picture.placeholder, picture.text) for picture in shown]
            text = prompt.expand_placeholders(text, (self.image_token, self.video_token), replacements)
            texts.append(reading.restore(text))
            self.check_size(texts[-1])
            ids = reading.encode(text)
            rows.append(self.check_length(ids if shorten is None else self.check_pictures(ids, shorten(ids))))
            pictures += shown
        return self.assemble(texts, rows, pictures)

    def check_size(self, text: str) -> None:
        """Refuse a text that is too long whatever its tokens are, before time and memory are spent on reading it.

        A token stands for at most twice as many characters as it has bytes: composition (NFC) may make 3 bytes of 4
        characters.

        Raises:
            InputError: it is.
        """
        limit = self.facts.max_position_embeddings
        if len(text) > limit and len(text) > 2 * limit * self.tokenizer.longest_token:
            raise InputError(
                f"the prompt has {len(text)} characters, more than the {limit} tokens of the context can hold",
                "Shorten the text",
            )

    def check_length(self, ids: list[int]) -> list[int]:
        """The ids themselves; an `InputError` if there are none, or more than the context holds."""
        limit = self.facts.max_position_embeddings
        if len(ids) > limit:
            raise InputError(
                f"the prompt has {len(ids)} tokens, the context holds {limit}: {len(ids) - limit} over",
                "Shorten the text, or use fewer or smaller pictures",
            )
        if not ids:
            raise InputError("the prompt is empty", "Pass a question")
        return ids

    def check_pictures(self, ids: list[int], kept: list[int]) -> list[int]:
        """The kept token ids; an `InputError` if tokens of pictures are not among them."""
        visual = [int(positions.visual_tokens(np.array(tokens), self.facts).sum()) for tokens in (ids, kept)]
        if visual[0] != visual[1]:
            raise InputError(
                f"the input has {len(ids)} tokens, {len(kept)} are read, which cuts its pictures",
                "Use fewer or smaller pictures",
            )
        return kept

    def picture(self, medium: Image | Video | Picture) -> Picture:
        """A message's image or video, ready for the encoder; a `Picture` is returned as it is."""
        if isinstance(medium, Picture):
            return medium
        if isinstance(medium, Video):
            return self.prepare_video(medium)
        image = open_image(medium.source, self.url_rules)
        height, width = self.sizing.of_image(image.height, image.width, medium.budget)
        patches = image_to_patches(image, (height, width), self.sizing.image_rules, self.facts)
        tokens = height * width // self.facts.merge_unit
        text = prompt.image_text(self.image_token, tokens)
        return Picture(patches, (1, height, width), self.image_token, text, is_video=False)

    def prepare_video(self, video: Video) -> Picture:
        sampled = open_video(video, self.frame_rules, self.url_rules)
        size = sampled.height, sampled.width
        grid = self.sizing.of_video(len(sampled.indices), *size, video.budget, video.is_list)
        tokens = grid[0] * grid[1] // self.facts.merge_unit
        merged = math.ceil(len(sampled.indices) / self.facts.temporal_patch_size)
        if tokens * merged > self.facts.max_position_embeddings:  # before all of it is decoded
            raise InputError(
                f"a video of {len(sampled.indices)} frames has {tokens * merged} tokens, the context holds "
                f"{self.facts.max_position_embeddings}",
                "Use fewer or smaller frames",
            )
        patches = frames_to_patches(sampled.frames, grid, self.sizing.video_rules, self.facts)
        seconds = prompt.frame_seconds(sampled.indices.tolist(), sampled.fps, self.facts.temporal_patch_size)
        start = self.tokenizer.token(self.facts.vision_start_token_id)
        end = self.tokenizer.token(self.facts.vision_end_token_id)
        text = prompt.video_text((start, self.video_token, end), tokens, seconds)
        return Picture(patches, (len(seconds), *grid), self.video_token, text, is_video=True)

    def assemble(self, texts: Sequence[str], rows: Sequence[Sequence[int]], pictures: Sequence[Picture]) -> Prepared:
        """A padded batch from the prompts, their token ids, and the pictures in the order of their tokens."""
        length = max(map(len, rows))
        input_ids = np.full((len(rows), length), self.pad_id, np.int64)
        attention_mask = np.zeros((len(rows), length), np.int64)
        for index, ids in enumerate(rows):
            input_ids[index, length - len(ids) :] = ids
            attention_mask[index, length - len(ids) :] = 1
        grid_thw = np.array([picture.grid for picture in pictures], np.int64).reshape(-1, 3)
        empty = np.zeros((0, self.facts.patch_dim), np.float32)
        pixel_values = np.concatenate([empty, *(picture.patches for picture in pictures)])
        position_ids, rope_deltas = positions.rope_index(input_ids, attention_mask, grid_thw, self.facts)
        return Prepared(
            tuple(texts),
            input_ids,
            attention_mask,
            position_ids,
            rope_deltas,
            pixel_values,
            grid_thw,
            tuple(picture.is_video for picture in pictures),
        )
