"""An artifact as a model that answers questions, embeds inputs or scores pairs: `Qwen3VL`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact import open_artifact
from ..contract import EMBEDDING, RERANKER, TEXT, decoder_output
from ..errors import InputError
from .answer import Answer, Limits, read_texts
from .arrays import Float32, Floats
from .conversation import picture_digests
from .devices import CPU, choose_device
from .generate import prefill
from .heads import check_dimensions, embeddings_of, scores_of
from .pictures.fetch import PUBLIC, UrlRules
from .prepare import Prepared
from .prompts.messages import Content, Message, as_messages
from .prompts.reply import Reply
from .retrieval import (
    Input,
    embedding_conversation,
    ordered,
    reranker_conversation,
    shorten_embedding,
    shorten_pair,
)
from .sampling import Sampling, override
from .stages import MAX_NEW_TOKENS, Stages

DEFAULT_LIMITS = Limits()
BATCH_SIZE = 8  # of embeddings and scores


class Qwen3VL(Stages):
    """A model exported to ONNX, with its tokenizer, chat template and image processing.

    Create it with `Qwen3VL.load`.
    """

    @classmethod
    def load(
        cls,
        path: str | Path,
        threads: int | None = None,
        check: bool = True,
        url_rules: UrlRules = PUBLIC,
        precision: str = "",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        device: str = CPU.name,
        provider_options: Mapping[str, Any] | None = None,
        open_ahead: bool = False,
    ) -> Qwen3VL:
        """Open an artifact directory, which may be a snapshot in huggingface_hub's cache.

        Args:
            threads: threads per operator; None leaves the number to onnxruntime.
            check: first compare every file with the manifest's sha256.
            url_rules: limits on size and time for a picture's URL, and whether private addresses are allowed.
            precision: one of the artifact's precisions, such as `"q4"`; the default is the artifact's own.
            min_pixels: a picture is enlarged to at least this many pixels.
            max_pixels: a picture, or a frame of a video, is reduced to at most this many pixels. Both numbers are
                within the checkpoint's, which are the defaults. A token is 32x32 pixels.
            device: where the graphs run: `"cpu"`, `"cuda"`, `"cuda:1"`, `"webgpu"` or another name in
                `devices.PROVIDERS`, or what onnxruntime calls a provider, such as `"CUDAExecutionProvider"`.
            provider_options: of the device's provider, as onnxruntime takes them.
            open_ahead: begin at once to open the graphs that every prompt needs, in threads of their own, and to open
                the vision encoder once `picture` is called.

        Raises:
            ArtifactError: no artifact, no such precision, an altered file, or an onnxruntime that is too old.
            InputError: `threads` is below 1 or above 1024, a number of pixels that the checkpoint does not allow, or a
                device that is not there.
        """
        chosen = choose_device(device, provider_options)  # before files are read
        artifact = open_artifact(Path(path), check, precision)
        return cls(artifact, threads, url_rules, min_pixels, max_pixels, chosen, open_ahead)

    # Answers as text.

    def stream(
        self,
        content: Content,
        max_new_tokens: int = MAX_NEW_TOKENS,
        *,
        stop: str | Sequence[str] | None = None,
        max_time: float | None = None,
        end_loops: bool = False,
        keep_special_tokens: bool = False,
        plain_text: bool = False,
        prompt_lookup: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Answer:
        """The answer, piece by piece as it is generated; pieces never split a character.

        Pictures and prompt are checked right away, before the first piece is requested.

        Args:
            content: a question, `[Image("cat.jpg"), "What is this?"]`, or messages with `role` and `content`.
            stop: one or several strings; the answer ends before the first of them.
            max_time: seconds, from this call; no token is started after them.
            end_loops: end an answer that repeats itself without end, as `repetition` defines that.
            keep_special_tokens: special tokens that the model writes, such as `<|box_start|>`, are part of the text.
            plain_text: control tokens spelled in the messages are ordinary text, as `plain_text` defines that.
            prompt_lookup: draft tokens that the prompt or answer has had in such a place, and read several in one call:
                the same answer sooner, as `speculation` defines that. Default: where `decide_lookup` says.
            tools: functions the model may call, in the format of the OpenAI API; calls are in `Answer.reply`.
            chat_template_kwargs: further variables of the chat template, such as `documents` or `enable_thinking`.
            settings: `temperature` (0 is greedy), `top_k`, `top_p`, `min_p`, `repetition_penalty`, `presence_penalty`,
                `seed`; the defaults are those of the checkpoint's `generation_config.json`.

        Raises:
            InputError: a picture, message or setting that cannot be used, or a prompt longer than the context.
        """
        self.require_head(TEXT)
        started = time.perf_counter()
        limits = Limits.of(max_new_tokens, stop, max_time, end_loops)
        sampling = override(self.sampling, **settings)
        prepared = self.prepare([as_messages(content)], plain_text, tools=tools, **(chat_template_kwargs or {}))
        return self.answer(prepared, sampling, limits, started, keep_special_tokens, prompt_lookup)

    def generate(self, content: Content, max_new_tokens: int = MAX_NEW_TOKENS, **settings: Any) -> str:
        """The whole answer; arguments as for `stream`."""
        return self.stream(content, max_new_tokens, **settings).read()

    def reply(self, content: Content, max_new_tokens: int = MAX_NEW_TOKENS, **settings: Any) -> Reply:
        """The whole answer, parsed into content, reasoning and tool calls; arguments as for `stream`."""
        answer = self.stream(content, max_new_tokens, **settings)
        answer.read()
        return answer.reply

    def generate_batch(
        self,
        contents: Sequence[Content],
        max_new_tokens: int = MAX_NEW_TOKENS,
        *,
        stop: str | Sequence[str] | None = None,
        max_time: float | None = None,
        end_loops: bool = False,
        keep_special_tokens: bool = False,
        plain_text: bool = False,
        prompt_lookup: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> list[str]:
        """The whole answer to each question, computed as one batch; arguments as for `stream`.

        Rows may differ in length and in number, kind and size of pictures. Each row has its own random generator.
        """
        self.require_head(TEXT)
        started = time.perf_counter()
        limits = Limits.of(max_new_tokens, stop, max_time, end_loops)
        sampling = override(self.sampling, **settings)
        prepared = self.prepare(
            [as_messages(content) for content in contents], plain_text, tools=tools, **(chat_template_kwargs or {})
        )
        steps = self.generate_steps(prepared, max_new_tokens, sampling, prompt_lookup=prompt_lookup)
        return read_texts(steps, len(contents), self.tokenizer, self.stop_ids, limits, started, keep_special_tokens)

    def answer(
        self,
        prepared: Prepared,
        sampling: Sampling | None = None,
        limits: Limits = DEFAULT_LIMITS,
        started: float | None = None,
        keep_special_tokens: bool = False,
        prompt_lookup: bool | None = None,
    ) -> Answer:
        """The answer to the first row of a prepared prompt; `started` and `keep_special_tokens` as for `Answer`."""
        started = time.perf_counter() if started is None else started
        self.decide_lookup(len(prepared.input_ids), prompt_lookup)  # refused before the first piece
        steps = self.generate_steps(
            prepared, limits.max_new_tokens, sampling, conversation=self.conversation, prompt_lookup=prompt_lookup
        )
        thinking = prepared.texts[0].rstrip().endswith("<think>")
        length = prepared.input_ids.shape[1]
        return Answer(steps, self.tokenizer, self.stop_ids, limits, started, thinking, length, keep_special_tokens)

    # Embeddings and scores, of models whose head is for them.

    def embed(
        self,
        inputs: Sequence[Input],
        *,
        instruction: str | None = None,
        dimensions: int | None = None,
        normalize: bool = True,
        plain_text: bool = False,
        batch_size: int = BATCH_SIZE,
    ) -> Float32:
        """An embedding of each input, float32 [N, dimensions].

        Args:
            inputs: each a text, an `Image` or `Video`, a list of them, or a mapping with the keys `text`, `image`,
                `video` and `instruction`. Videos are read first, then images, then texts.
            instruction: what the embeddings are for, of every input that has no own; default that of the public code.
            dimensions: how many of the leading dimensions to return; default all.
            normalize: give each embedding the length 1, so that products are cosines.
            plain_text: as for `stream`.
            batch_size: inputs to compute at a time.

        Raises:
            InputError: the model has another head, an input that cannot be used, or a number out of range.
        """
        self.require_head(EMBEDDING)
        if isinstance(inputs, str | Mapping) or not isinstance(inputs, Sequence):
            raise InputError(f"the inputs are a {type(inputs).__name__}", "Pass a list of inputs")
        count = check_dimensions(dimensions, self.facts.hidden_size)
        conversations = [embedding_conversation(given, instruction, self.facts) for given in inputs]
        rows = self.last_outputs(conversations, shorten_embedding, plain_text, batch_size)
        return embeddings_of(rows, count, normalize)

    def rerank(
        self,
        query: Input,
        documents: Sequence[Input],
        *,
        instruction: str | None = None,
        plain_text: bool = False,
        batch_size: int = BATCH_SIZE,
    ) -> Float32:
        """How well each document meets the query, float32 [N] from 0 to 1, in the order of the documents.

        Args:
            query, documents: as the inputs of `embed`, without an instruction.
            instruction: what makes a document meet a query; default that of the public code.
            plain_text, batch_size: as for `embed`.

        Raises:
            InputError: as `embed`.
        """
        self.require_head(RERANKER)
        if isinstance(documents, str | Mapping) or not isinstance(documents, Sequence):
            raise InputError(f"the documents are a {type(documents).__name__}", "Pass a list of documents")
        pieces = ordered(query, self.facts)
        asked = [piece if isinstance(piece, str) else self.preparer.picture(piece) for piece in pieces]
        conversations = [reranker_conversation(asked, document, instruction, self.facts) for document in documents]
        shorten = partial(shorten_pair, special=self.tokenizer.special_ids)
        return scores_of(self.last_outputs(conversations, shorten, plain_text, batch_size))

    def last_outputs(
        self,
        conversations: Sequence[Sequence[Message]],
        shorten: Callable[[list[int]], list[int]] | None = None,
        plain_text: bool = False,
        batch_size: int = BATCH_SIZE,
    ) -> Floats:
        """What the head makes of the last token of each conversation, as `decoder.decode` returns it: [N, …]."""
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}", "Use at least 1")
        width = int(decoder_output(self.facts).shape[-1])
        outputs: list[Floats] = [np.zeros((0, width), np.float32)]
        for start in range(0, len(conversations), batch_size):
            prepared = self.preparer(conversations[start : start + batch_size], plain_text, shorten)
            features = self.features(prepared, picture_digests(prepared))
            outputs.append(prefill(self.sessions, prepared, features)[0])
        return np.concatenate(outputs)
