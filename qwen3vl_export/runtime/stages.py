"""The stages of an artifact at work: pictures and prompts to arrays, features, rows, tokens.

Each stage is a public method, so that a harness can compare every stage of the code that users run. `model.py` makes
answers, embeddings and scores of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..artifact import Artifact
from ..contract import DECODER, EMBEDDING, EMBEDDINGS, RERANKER, TEXT, Facts
from ..errors import ArtifactError, InputError
from . import decoder, encoders
from .answer import Limits
from .arrays import Floats, Ints
from .cache import Cache
from .conversation import Conversation, FeatureCache, picture_digests, picture_spans
from .devices import CPU, Device
from .generate import PREFILL_CHUNK, Step, generate
from .pictures.fetch import PUBLIC, UrlRules
from .pictures.images import Image
from .pictures.picture import Picture
from .pictures.video import Video
from .prepare import Prepared, Preparer
from .prompts.messages import Message
from .sampling import Sampling, from_generation_config, stop_ids
from .session import Sessions
from .speculation import Cost, cost_of

SETTINGS = "generation_config.json"
TEXT_GRAPHS = (DECODER, EMBEDDINGS)  # what every prompt needs
MAX_NEW_TOKENS = Limits().max_new_tokens
EXPERTS = "qwen3_vl_moe"  # the model type of mixtures of experts
PURPOSES = {TEXT: "answers, by stream()", EMBEDDING: "embeddings, by embed()", RERANKER: "scores, by rerank()"}


class Stages:
    """What an artifact computes, step by step. Graphs are opened when first used, or ahead of it.

    Args:
        artifact: as returned by `open_artifact`.
        threads, url_rules, min_pixels, max_pixels, open_ahead: as for `Qwen3VL.load`.
        device: as returned by `choose_device`.

    Raises:
        ArtifactError, InputError: as `Qwen3VL.load`.
    """

    def __init__(
        self,
        artifact: Artifact,
        threads: int | None = None,
        url_rules: UrlRules = PUBLIC,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        device: Device = CPU,
        open_ahead: bool = False,
    ) -> None:
        self.artifact = artifact
        self.sessions = Sessions(artifact, threads, device=device)
        self.opens_ahead = open_ahead
        if open_ahead:
            self.sessions.open_ahead(TEXT_GRAPHS)
        self.preparer = Preparer(artifact, url_rules, min_pixels, max_pixels)
        self.tokenizer = self.preparer.tokenizer
        config = artifact.json_file(SETTINGS)
        try:
            self.sampling = from_generation_config(config)
            configured = stop_ids(config)
        except InputError as error:
            raise ArtifactError(f"{SETTINGS}: {error.what}", f"Rebuild: {artifact.build_command}") from error
        self.stop_ids = self._eos_ids() if configured is None else configured
        self.conversation = Conversation()
        self.feature_cache = FeatureCache()

    @property
    def facts(self) -> Facts:
        return self.artifact.manifest.facts

    def _eos_ids(self) -> frozenset[int]:
        """What the tokenizer calls the end, where the settings do not say."""
        eos = self.tokenizer.id_of(self.tokenizer.special.get("eos_token", ""))
        return frozenset() if eos is None else frozenset({eos})

    def require_head(self, head: str) -> None:
        """Refuse what a model of another head does.

        Raises:
            InputError: the model's head is not this one.
        """
        if self.facts.head != head:
            raise InputError(
                f"{self.artifact.root}: is a model for {PURPOSES[self.facts.head]}", "Use another artifact"
            )

    def picture(self, medium: Image | Video) -> Picture:
        """An image or video ready for the encoder, to use in any number of turns without reading it again.

        Raises:
            InputError: as `images.open_image` and `video.open_video`.
        """
        picture = self.preparer.picture(medium)
        if self.opens_ahead:
            grids = (None, picture.grid[1:])
            self.sessions.open_ahead(
                encoder.graph for encoder in self.artifact.manifest.encoders if encoder.grid in grids
            )
        return picture

    def prepare(
        self, conversations: Sequence[Sequence[Message]], plain_text: bool = False, **variables: Any
    ) -> Prepared:
        """Conversations to arrays, one row each, padded on the left; `variables` are passed to the chat template."""
        return self.preparer(conversations, plain_text, **variables)

    def encode_images(self, pixel_values: Floats, image_grid_thw: Ints) -> Floats:
        """Patches float32 [P, patch_dim] of pictures with grids int64 [I, 3] to features [T, W]."""
        return encoders.encode(self.sessions, self.artifact.manifest.encoders, pixel_values, image_grid_thw)

    def embed_inputs(self, input_ids: Ints, image_features: Floats) -> Floats:
        """Token ids int64 [B, S] and features [T, W] to wide rows [B, S, W]."""
        return decoder.embed(self.sessions, input_ids, image_features)

    def empty_cache(self, batch: int) -> Cache:
        """The cache before the first token."""
        return decoder.empty_cache(self.sessions, batch)

    def decode(
        self,
        inputs_embeds: Floats,
        attention_mask: Ints,
        position_ids: Ints,
        past: Cache | None = None,
        num_logits_to_keep: int = 0,
    ) -> tuple[Floats, Cache]:
        """Wide rows [B, S, W] after `past` to the head's output and the cache, which is `past` itself, now longer.

        See `decoder.decode`.
        """
        cache = self.empty_cache(len(inputs_embeds)) if past is None else past
        embeds, mask = inputs_embeds, attention_mask
        return decoder.decode(self.sessions, embeds, mask, position_ids, cache, num_logits_to_keep), cache

    def generate_steps(
        self,
        prepared: Prepared,
        max_new_tokens: int = MAX_NEW_TOKENS,
        sampling: Sampling | None = None,
        prefill_chunk: int | None = PREFILL_CHUNK,
        stop_ids: frozenset[int] | None = None,
        conversation: Conversation | None = None,
        prompt_lookup: bool | None = False,
    ) -> Iterator[Step]:
        """Tokens of all rows, step by step, each with its logits.

        Args:
            sampling: default: the checkpoint's.
            prefill_chunk: tokens of the prompt per call of the decoder; None reads all of them in one call.
            stop_ids: default: the checkpoint's; with an empty set only `max_new_tokens` and the context end a row.
            conversation: a cache to reuse and to update; None reads the whole prompt. Only used for a single row.
            prompt_lookup: as for `decide_lookup`.
        """
        self.require_head(TEXT)
        draft_cost = self.decide_lookup(len(prepared.input_ids), prompt_lookup)
        sampling = self.sampling if sampling is None else sampling
        stop_ids = self.stop_ids if stop_ids is None else stop_ids
        digests = picture_digests(prepared)
        if conversation is None or len(prepared.input_ids) != 1:
            features = self.features(prepared, digests)
            arguments = (self.sessions, prepared, features, max_new_tokens, sampling, stop_ids, prefill_chunk)
            yield from generate(*arguments, draft_cost=draft_cost)
            return
        ids = prepared.input_ids[0]
        spans = picture_spans(prepared, digests, self.facts)
        cache = conversation.take(ids, spans) or self.empty_cache(1)
        read = cache.length  # tokens that were read without an error
        try:
            features = self.features(prepared, digests, sum(span.end <= read for span in spans))
            for step in generate(
                self.sessions, prepared, features, max_new_tokens, sampling, stop_ids, prefill_chunk, cache, draft_cost
            ):
                read = len(ids)
                ids = np.append(ids, step.tokens)
                yield step
        finally:  # also if the answer is cut short, or a step fails half-way
            cache.truncate(read)
            conversation.keep(cache, ids, spans)

    def decide_lookup(self, rows: int, prompt_lookup: bool | None) -> Cost | None:
        """What drafts cost where prompt lookup decoding is used, which `speculation` explains; None where it is not.

        Args:
            rows: of the batch.
            prompt_lookup: None uses it where it gives the same tokens and may save time: for a single row, of a model
                whose tokens do not each read experts of their own, and whose activations are not rounded to 8 bits.

        Raises:
            InputError: it is asked for, and tokens of a call or rows of a batch would affect each other.
        """
        plan = (self.artifact.manifest.recipe.get("quantization") or {}).get(DECODER, {})
        if plan.get("method") == "int8_dynamic":
            obstacle = "int8_dynamic rounds the tokens of a call together, so that drafts would change the answer"
        elif rows > 1:
            obstacle = f"of {rows} rows in a batch each would accept another number of tokens"
        elif prompt_lookup is None and (self.facts.model_type == EXPERTS or plan.get("accuracy_level") == 4):
            return None
        else:
            return None if prompt_lookup is False else cost_of(plan)
        if prompt_lookup:
            raise InputError(f"prompt_lookup: {obstacle}", "Leave it out")
        return None

    def features(self, prepared: Prepared, digests: Sequence[bytes], first: int = 0) -> Floats:
        """Features [T, W] of the pictures from index `first` on; only those not in the feature cache are encoded."""
        merge = self.facts.merge_unit
        bounds = np.cumsum([0, *prepared.image_grid_thw.prod(axis=1)])
        by_digest = {digest: self.feature_cache.get(digest) for digest in digests[first:]}
        new = [index for index in range(first, len(digests)) if by_digest[digests[index]] is None]
        if new:
            patches = np.concatenate([prepared.pixel_values[bounds[index] : bounds[index + 1]] for index in new])
            encoded = self.encode_images(patches, prepared.image_grid_thw[new])
            ends = np.cumsum([bounds[index + 1] - bounds[index] for index in new])[:-1] // merge
            for index, features in zip(new, np.split(encoded, ends), strict=True):
                by_digest[digests[index]] = features
                self.feature_cache.put(digests[index], features.copy())
        return np.concatenate([decoder.no_features(self.sessions), *(by_digest[digest] for digest in digests[first:])])

    def generate_ids(
        self,
        prepared: Prepared,
        max_new_tokens: int = MAX_NEW_TOKENS,
        sampling: Sampling | None = None,
        prefill_chunk: int | None = PREFILL_CHUNK,
        stop_ids: frozenset[int] | None = None,
    ) -> list[list[int]]:
        """The generated ids of each row, its stop token included; arguments as for `generate_steps`."""
        rows: list[list[int]] = [[] for _ in prepared.input_ids]
        for step in self.generate_steps(prepared, max_new_tokens, sampling, prefill_chunk, stop_ids):
            for row, token, alive in zip(rows, step.tokens.tolist(), step.alive.tolist(), strict=True):
                if alive:
                    row.append(token)
        return rows
