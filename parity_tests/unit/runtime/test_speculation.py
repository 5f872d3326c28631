"""Prompt lookup decoding: the answer of plain decoding in every way that a draft can be right, wrong or cut short."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3vl_export.artifact import Artifact, open_artifact
from qwen3vl_export.errors import ArtifactError
from qwen3vl_export.runtime import GREEDY, Image, Prepared, Qwen3VL, Sampling
from qwen3vl_export.runtime import generate as generate_module
from qwen3vl_export.runtime.conversation import Conversation
from qwen3vl_export.runtime.devices import CPU
from qwen3vl_export.runtime.memory import DeviceMemory
from qwen3vl_export.runtime.prompts.messages import as_messages

PICTURE = np.random.default_rng(83).integers(0, 256, (64, 128, 3), np.uint8)
QUESTIONS: list[Any] = ["Count to nine.", [Image(PICTURE), "Describe the picture."], "Say: red blue red blue red blue"]
SAMPLINGS = [
    GREEDY,
    Sampling(repetition_penalty=1.3, presence_penalty=0.7),
    Sampling(True, 0.7, top_k=20, top_p=0.8, seed=5),
    Sampling(True, 2.5, min_p=0.01, repetition_penalty=1.1, presence_penalty=-0.5, seed=6),
]
NEVER = frozenset[int]()
TOKENS = 40


class Drafts:
    """In place of `PromptLookup`: drafts made from the answer, which is known.

    Args:
        wrong: of how many drafted tokens one is wrong; 0 is none.
    """

    def __init__(self, answer: list[int], wrong: int, seed: int) -> None:
        self.answer, self.wrong = answer, wrong
        self.rng = np.random.default_rng(seed)
        self.index = 0
        self.left: list[int] = []
        self.given: list[list[int]] = []

    def push(self, token: int) -> bool:
        self.index += 1
        accepted = self.left[:1] == [token]
        self.left = self.left[1:] if accepted else []
        return accepted

    def draft(self, limit: int) -> list[int]:
        length = max(0, min(limit, int(self.rng.integers(0, 8))))
        self.left = [
            (token + 1) % 500 if self.wrong and self.rng.integers(self.wrong) == 0 else token
            for token in self.answer[self.index : self.index + length]
        ]
        self.given.append(self.left)
        return self.left


@pytest.fixture(params=["tiny_artifact", "tiny_portable_artifact"])
def model(request: pytest.FixtureRequest) -> Qwen3VL:
    return Qwen3VL.load(request.getfixturevalue(request.param), threads=1, check=False)


def steps_of(model: Qwen3VL, prepared: Prepared, lookup: bool, sampling: Sampling = GREEDY, **settings: Any) -> Any:
    return list(model.generate_steps(prepared, TOKENS, sampling, prompt_lookup=lookup, **settings))


def ids_of(steps: Any) -> list[int]:
    return [int(step.tokens[0]) for step in steps]


def draft_from(monkeypatch: pytest.MonkeyPatch, answer: list[int], wrong: int, seed: int = 0) -> Drafts:
    drafts = Drafts(answer, wrong, seed)
    monkeypatch.setattr(generate_module, "PromptLookup", lambda *_: drafts)
    return drafts


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each call of the decoder read."""
    counts: list[int] = []
    decode = generate_module.decode

    def count_and_decode(sessions: Any, inputs_embeds: Any, *arguments: Any) -> Any:
        counts.append(inputs_embeds.shape[1])
        return decode(sessions, inputs_embeds, *arguments)

    monkeypatch.setattr(generate_module, "decode", count_and_decode)
    return counts


@pytest.mark.parametrize("wrong", [0, 1, 3], ids=["right", "wrong", "mixed"])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_tokens_and_logits_are_those_of_plain_decoding(
    model: Qwen3VL, sampling: Sampling, wrong: int, monkeypatch: pytest.MonkeyPatch, calls: list[int]
) -> None:
    """Whatever is drafted: right tokens, wrong ones from the first, and drafts that are right for a while."""
    for number, question in enumerate(QUESTIONS):
        prepared = model.prepare([as_messages(question)])
        plain = steps_of(model, prepared, False, sampling, stop_ids=NEVER)
        calls.clear()
        drafts = draft_from(monkeypatch, ids_of(plain), wrong, number)
        ahead = steps_of(model, prepared, True, sampling, stop_ids=NEVER)
        assert ids_of(ahead) == ids_of(plain)
        stacks = [np.stack([step.logits for step in steps]) for steps in (ahead, plain)]
        np.testing.assert_allclose(*stacks, atol=1e-4)
        assert calls[1:] == [1 + len(draft) for draft in drafts.given]
        assert len(calls) < TOKENS or wrong == 1


@pytest.mark.parametrize("memory", [None, DeviceMemory(CPU)], ids=["none", "a device's"])
def test_caches_wherever_they_are_forget_what_was_not_chosen(
    tiny_artifact: Path, memory: DeviceMemory | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Qwen3VL.load(tiny_artifact, threads=1, check=False)
    model.sessions.memory = memory
    prepared = model.prepare([as_messages(QUESTIONS[1])])
    plain = steps_of(model, prepared, False, stop_ids=NEVER)
    drafts = draft_from(monkeypatch, ids_of(plain), 3)
    ahead = steps_of(model, prepared, True, stop_ids=NEVER)
    np.testing.assert_allclose(*([step.logits for step in steps] for steps in (ahead, plain)), atol=1e-4)
    assert any(drafts.given)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_its_own_drafts_change_nothing(model: Qwen3VL, sampling: Sampling, calls: list[int]) -> None:
    for question in QUESTIONS:
        prepared = model.prepare([as_messages(question)])
        settings = {"sampling": sampling, "stop_ids": NEVER}
        plain = list(model.generate_steps(prepared, 120, **settings))
        assert ids_of(model.generate_steps(prepared, 120, prompt_lookup=True, **settings)) == ids_of(plain)
    assert max(calls[1:]) > 1


def test_a_stop_token_ends_an_answer_wherever_a_draft_has_it(model: Qwen3VL, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = model.prepare([as_messages(QUESTIONS[0])])
    free = ids_of(steps_of(model, prepared, False, stop_ids=NEVER))
    for stop in dict.fromkeys(free):
        for seed in range(3):
            drafts = draft_from(monkeypatch, free, 0, seed)
            assert ids_of(steps_of(model, prepared, True, stop_ids=frozenset({stop}))) == free[: free.index(stop) + 1]
            assert drafts.given or free[0] == stop


def test_the_token_limit_and_the_context_end_within_a_draft(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch, calls: list[int]
) -> None:
    artifact = open_artifact(tiny_artifact, check=False)
    prepared = Qwen3VL(artifact, threads=1).prepare([as_messages(QUESTIONS[0])])
    length = prepared.input_ids.shape[1]
    answer = ids_of(steps_of(Qwen3VL(artifact, threads=1), prepared, False, stop_ids=NEVER))
    for room in (1, 2, 3, 5, 8, 11):
        facts = dataclasses.replace(artifact.manifest.facts, max_position_embeddings=length + room)
        small = Qwen3VL(Artifact(tiny_artifact, dataclasses.replace(artifact.manifest, facts=facts)), threads=1)
        for limit in (50, room):
            calls.clear()
            draft_from(monkeypatch, answer, 0, room)
            tokens = ids_of(small.generate_steps(prepared, limit, stop_ids=NEVER, prompt_lookup=True))
            assert tokens == answer[: min(limit, room + 1)]
            assert sum(calls) == length + len(tokens) - 1  # nothing is read that cannot count


@pytest.mark.parametrize("ended", ["closed", "interrupted"])
def test_an_answer_cut_short_within_a_draft_is_built_on(
    model: Qwen3VL, ended: str, monkeypatch: pytest.MonkeyPatch, calls: list[int]
) -> None:
    """After any number of tokens the conversation has what was read and chosen, and no drafted token after it."""
    prepared = model.prepare([as_messages(QUESTIONS[1])])
    answer = ids_of(steps_of(model, prepared, False, stop_ids=NEVER))
    for count in (1, 2, 3, 5, 8, 13):
        conversation = Conversation()
        draft_from(monkeypatch, answer, 3, count)
        steps = model.generate_steps(
            prepared, TOKENS, GREEDY, stop_ids=NEVER, conversation=conversation, prompt_lookup=True
        )
        for _ in range(count):
            next(steps)
        if ended == "closed":
            steps.close()  # type: ignore[attr-defined]
        else:
            with pytest.raises(KeyboardInterrupt):
                steps.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
        ids = np.append(prepared.input_ids[0], answer[:count])
        cache = conversation._cache
        assert cache is not None and cache.length == len(ids) - 1
        np.testing.assert_array_equal(conversation._ids, ids[:-1])
        calls.clear()
        resumed = ids_of(steps_of(model, prepared, False, stop_ids=NEVER, conversation=conversation))
        assert resumed == answer and calls[0] == 1
        talk = [*as_messages(QUESTIONS[1]), {"role": "assistant", "content": model.tokenizer.decode(answer[:count])}]
        follow = model.prepare([[*talk, {"role": "user", "content": "Why?"}]])
        draft_from(monkeypatch, [], 0)
        resumed = ids_of(steps_of(model, follow, True, stop_ids=NEVER, conversation=conversation))
        assert resumed == ids_of(steps_of(model, follow, False, stop_ids=NEVER))


def test_a_draft_beyond_the_range_of_float16_does_not_end_the_answer(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Qwen3VL.load(tiny_artifact, threads=1, check=False)
    prepared = model.prepare([as_messages(QUESTIONS[0])])
    answer = ids_of(steps_of(model, prepared, False, stop_ids=NEVER))
    decode = generate_module.decode
    refused = []

    def decode_single(sessions: Any, embeds: Any, mask: Any, positions: Any, cache: Any, keep: int) -> Any:
        if cache.length and embeds.shape[1] > 1:
            refused.append(embeds.shape[1])
            raise ArtifactError("decoder: out of range", "Use another")
        return decode(sessions, embeds, mask, positions, cache, keep)

    monkeypatch.setattr(generate_module, "decode", decode_single)
    draft_from(monkeypatch, answer, 0)
    assert ids_of(steps_of(model, prepared, True, stop_ids=NEVER)) == answer
    assert refused
