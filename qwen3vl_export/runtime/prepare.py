"""Conversations to the arrays the graphs read: what transformers calls a processor.

Knows how text, pictures and positions fit together; runs no graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..artifact import Artifact
from ..contract import Facts
from ..errors import ArtifactError, InputError
from . import positions, prompt
from .arrays import Float32, Ints
from .budget import Budget, Size, frame_size, image_size
from .encoders import Grid, choose_grid, fixed_grids, grids_within
from .fetch import PUBLIC, UrlRules
from .frames import FrameRules, read_frame_rules
from .images import Image, open_image
from .messages import Message, split_media
from .picture import Picture
from .preprocess import (
    PixelRules,
    frames_to_patches,
    image_grid,
    image_to_patches,
    narrow,
    read_pixel_rules,
    read_video_pixel_rules,
    video_grid,
)
from .tokenizer import Tokenizer
from .video import Video, open_video

IMAGE_RULES = "preprocessor_config.json"
VIDEO_RULES = "video_preprocessor_config.json"
TEMPLATE = "chat_template.jinja"
DEFAULT_TEMPLATE, TOOL_TEMPLATE = "default", "tool_use"  # of several: what transformers' tokenizer calls them


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
        min_pixels: a picture is enlarged to at least this many pixels; default: the checkpoint's number.
        max_pixels: a picture, or a frame of a video, is reduced to at most this many; default: the checkpoint's number.

    Raises:
        ArtifactError: no usable tokenizer, or an unknown rule to choose among encoders.
        InputError: a number of pixels that the checkpoint, or the grids the artifact is bound to, do not allow.
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
        self.grids = fixed_grids(artifact.manifest)
        self.tokenizer = Tokenizer(artifact.root)
        self.image_token = self.tokenizer.token(self.facts.image_token_id)
        self.video_token = self.tokenizer.token(self.facts.video_token_id)
        self.limits = Budget(min_pixels, max_pixels)
        if self.limits != Budget():
            self.image_rules = narrow(self.image_rules, min_pixels, max_pixels)
            self.grids = grids_within(self.grids, *self.limits.limits(1), self.facts)

    @cached_property
    def image_rules(self) -> PixelRules:
        return read_pixel_rules(self.artifact.json_file(IMAGE_RULES), self.facts, IMAGE_RULES)

    @cached_property
    def video_rules(self) -> PixelRules:
        rules = read_video_pixel_rules(self.artifact.json_file(VIDEO_RULES), self.facts, VIDEO_RULES)
        return replace(rules, max_frame_pixels=self.limits.max_pixels)

    @cached_property
    def frame_rules(self) -> FrameRules:
        return read_frame_rules(self.artifact.json_file(VIDEO_RULES), VIDEO_RULES)

    @cached_property
    def templates(self) -> dict[str, prompt.ChatTemplate]:
        """The chat templates by name; one alone is the default."""
        path = self.artifact.root / TEMPLATE
        source: Any = path.read_text("utf-8") if path.is_file() else self.tokenizer.config.get("chat_template")
        if isinstance(source, list):  # the form of transformers 4
            source = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        sources = source if isinstance(source, dict) else {DEFAULT_TEMPLATE: source}
        if DEFAULT_TEMPLATE not in sources or not all(isinstance(text, str) for text in sources.values()):
            raise ArtifactError(f"{self.artifact.root}: no {TEMPLATE}", f"Rebuild: {self.artifact.build_command}")
        return {name: prompt.ChatTemplate.of(text) for name, text in sources.items()}

    def template(self, variables: Mapping[str, Any]) -> prompt.ChatTemplate:
        """The template for these variables, which it must read: that for tools, if there is one and tools are given.

        Raises:
            InputError: it does not read one of them.
        """
        name = TOOL_TEMPLATE if variables.get("tools") is not None else DEFAULT_TEMPLATE
        template = self.templates.get(name, self.templates[DEFAULT_TEMPLATE])
        known = template.names.variables - {"messages"}
        unread = [name for name, value in variables.items() if value and name not in known]
        if unread:
            raise InputError(
                f"the chat template does not read {unread[0]}",
                f"It reads {', '.join(sorted(known)) or 'messages alone'}",
            )
        return template

    @cached_property
    def pad_id(self) -> int:
        """The token that pads short rows; its value does not matter, because it is masked."""
        token_id = self.tokenizer.id_of(self.tokenizer.special.get("pad_token", ""))
        return 0 if token_id is None else token_id

    def __call__(self, conversations: Sequence[Sequence[Message]], **variables: Any) -> Prepared:
        """One row for each conversation; `variables` are passed to the chat template.

        Raises:
            InputError: a picture or a message that cannot be used, or a prompt longer than the context.
        """
        if not conversations:
            raise InputError("no conversation was given", "Pass at least one")
        texts, rows, pictures = [], [], []
        template = self.template(variables)
        for conversation in conversations:
            messages, media = split_media(conversation, template.names.words)
            shown = [self.picture(medium) for medium in media]
            text = prompt.render(template.compiled, messages, self.tokenizer.special, **variables)
            replacements = [(picture.placeholder, picture.text) for picture in shown]
            text = prompt.expand_placeholders(text, (self.image_token, self.video_token), replacements)
            texts.append(text)
            rows.append(self.check_length(self.tokenizer.encode(text)))
            pictures += shown
        return self.assemble(texts, rows, pictures)

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

    def picture(self, medium: Image | Video | Picture) -> Picture:
        """A message's image or video, ready for the encoder; a `Picture` is returned as it is."""
        if isinstance(medium, Picture):
            return medium
        if isinstance(medium, Video):
            return self.prepare_video(medium)
        image = open_image(medium.source, self.url_rules)
        if medium.budget is None:
            preferred = image_grid(image.height, image.width, self.image_rules, self.facts)
        else:
            ceiling = self.image_rules.max_pixels
            preferred = self.to_grid(image_size(image.height, image.width, medium.budget, ceiling, self.token_side), 1)
        height, width = self.fit_grid(image.height, image.width, preferred, medium.budget, 1)
        patches = image_to_patches(image, (height, width), self.image_rules, self.facts)
        tokens = height * width // self.facts.merge_unit
        text = prompt.image_text(self.image_token, tokens)
        return Picture(patches, (1, height, width), self.image_token, text, is_video=False)

    @property
    def token_side(self) -> int:
        """The side in pixels of what becomes one token."""
        return self.facts.patch_size * self.facts.spatial_merge_size

    def to_grid(self, size: Size, frames: int) -> Grid:
        """The grid (h, w), in patches, of a size that a message asks for; refused if no prompt can hold its tokens."""
        height, width = size[0] // self.facts.patch_size, size[1] // self.facts.patch_size
        tokens = -(-frames // self.facts.temporal_patch_size) * height * width // self.facts.merge_unit
        if tokens > (limit := self.facts.max_position_embeddings):
            raise InputError(f"a size of {tokens} tokens, the context holds {limit}", "Ask for fewer pixels or frames")
        return height, width

    def fit_grid(self, height: int, width: int, preferred: Grid, budget: Budget | None, frames: int) -> Grid:
        """The grid (h, w) of a picture of `height` x `width`: the preferred one, or one the artifact is bound to."""
        if budget is None or not self.grids:
            return choose_grid(self.grids, height, width, preferred)
        if budget.resized_height is not None:
            if preferred in self.grids:
                return preferred
            size = "x".join(str(side * self.facts.patch_size) for side in preferred)
            raise InputError(f"no encoder for pictures of {size} pixels", "Leave resized_height and resized_width out")
        grids = grids_within(self.grids, *budget.limits(frames), self.facts)
        return choose_grid(grids, height, width, preferred)

    def prepare_video(self, video: Video) -> Picture:
        sampled = open_video(video, self.frame_rules, self.url_rules)
        frames, budget = len(sampled.indices), video.budget
        if budget is None or not frames:
            preferred = video_grid(frames, sampled.height, sampled.width, self.video_rules, self.facts)
        else:
            ceiling = self.video_rules.max_frame_pixels
            size = frame_size(frames, sampled.height, sampled.width, budget, ceiling, self.token_side, video.is_list)
            preferred = self.to_grid(size, frames)
        grid = self.fit_grid(sampled.height, sampled.width, preferred, budget, frames)
        patches = frames_to_patches(sampled.frames, grid, self.video_rules, self.facts)
        seconds = prompt.frame_seconds(sampled.indices.tolist(), sampled.fps, self.facts.temporal_patch_size)
        start = self.tokenizer.token(self.facts.vision_start_token_id)
        end = self.tokenizer.token(self.facts.vision_end_token_id)
        tokens = grid[0] * grid[1] // self.facts.merge_unit
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
