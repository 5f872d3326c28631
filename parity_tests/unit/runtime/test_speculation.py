"""Prompt lookup decoding: the answer of plain decoding in every way that a draft can be right, wrong or cut short."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_tests.fixtures.commands import invoke
from qwen3vl_export.artifact import Artifact, open_artifact
from qwen3vl_export.errors import ArtifactError, InputError
from qwen3vl_export.runtime import GREEDY, Image, Prepared, Qwen3VL, Sampling
from qwen3vl_export.runtime import generate as generate_module
from qwen3vl_export.runtime.conversation import Conversation
from qwen3vl_export.runtime.devices import CPU
from qwen3vl_export.runtime.memory import DeviceMemory
from qwen3vl_export.runtime.prompts.messages import as_messages
from qwen3vl_export.runtime.speculation import (
    CREDIT,
    EIGHT_BITS,
    FLOAT,
    LONGEST_DRAFT,
    MOST_LOSS,
    UNPACKED,
    Cost,
    PromptLookup,
)

RNG = np.random.default_rng(83)
PICTURE = RNG.integers(0, 256, (64, 128, 3), np.uint8)
QUESTIONS: list[Any] = ["Count to nine.", [Image(PICTURE), "Describe the picture."], "Say: red blue red blue red blue"]
SAMPLINGS = [
    GREEDY,
    Sampling(repetition_penalty=1.3, presence_penalty=0.7),
    Sampling(True, 0.7, top_k=20, top_p=0.8, seed=5),
    Sampling(True, 2.5, min_p=0.01, repetition_penalty=1.1, presence_penalty=-0.5, seed=6),
]
NEVER = frozenset[int]()
TOKENS = 40
COSTS = (FLOAT, EIGHT_BITS, UNPACKED)


# What is drafted.


def look_up(prompt: list[int], barred: Collection[int] = (), cost: Cost = EIGHT_BITS) -> PromptLookup:
    return PromptLookup(prompt, barred, cost)


def drafts_of(lookup: PromptLookup, tokens: list[int]) -> Iterator[tuple[int, int]]:
    """Generate tokens: of each call how many there were before it, and how many it drafts."""
    for index, token in enumerate(tokens, 1):
        if not lookup.push(token):
            yield index, len(lookup.draft(len(tokens) - index))


def time_of(prompt: list[int], tokens: list[int], cost: Cost) -> float:
    """In times of a call with one token."""
    return sum(1 + cost.of(drafted) for _, drafted in drafts_of(look_up(prompt, cost=cost), tokens))


@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_a_quotation_of_the_prompt_is_read_in_long_calls(cost: Cost) -> None:
    text = RNG.integers(0, 1000, 400).tolist()
    drafts = [drafted for _, drafted in drafts_of(look_up(text, cost=cost), text[100:300])]
    assert len(drafts) < 200 / 6
    assert len(drafts) + sum(drafts) in (200, 201)  # all that was drafted was right


def test_every_draft_is_what_followed_the_same_tokens() -> None:
    text = RNG.integers(0, 5, 600).tolist()
    seen: list[int] = []
    lookup = look_up([])
    drafted = 0
    for token in text + text:
        lookup.push(token)
        seen.append(token)
        draft = lookup.draft(99)
        assert len(draft) <= LONGEST_DRAFT
        assert any((seen + draft)[start : start + len(draft)] == draft for start in range(len(seen)))
        drafted += len(draft)
    assert drafted > 0


@pytest.mark.parametrize("period", [1, 2, 3, 7])
def test_a_repetition_is_drafted_beyond_its_period(period: int) -> None:
    drafts = [drafted for _, drafted in drafts_of(look_up([]), [*range(period)] * (200 // period))]
    assert max(drafts) == LONGEST_DRAFT and len(drafts) < 50


@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_rows_of_one_form_are_drafted_across_what_differs(cost: Cost) -> None:
    """A table: its rows differ in a value of three tokens that no n-gram predicts, and the form goes on behind it."""
    form = list(range(100, 112))
    table = [token for _ in range(40) for token in (*form[:6], *RNG.integers(0, 90, 3).tolist(), *form[6:])]
    assert time_of([], table, cost) < len(table) / 1.4


@pytest.mark.parametrize(
    ("barred", "limit", "draft"),
    [
        (set(), 99, [60, 61, 62, 63]),
        ({62}, 99, [60, 61]),
        ({60}, 99, []),
        (set(), 2, [60, 61]),
        (set(), 0, []),
        (set(), -1, []),
    ],
)
def test_a_draft_ends_at_its_limit_and_before_barred_tokens(barred: set[int], limit: int, draft: list[int]) -> None:
    text = list(range(50, 90))
    lookup = look_up([*text, *text[:2]], barred)
    for token in text[2:10]:
        lookup.push(token)
    assert lookup.draft(limit) == draft


@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_where_nothing_is_predicted_nothing_is_drafted(cost: Cost) -> None:
    """Neither in new text nor, soon, where n-grams recur and always go on in another way."""
    assert time_of([], list(range(2000)), cost) == 2000
    lookup = look_up([], cost=cost)
    for index, token in enumerate(token for number in range(500) for token in (7, 8, 1000 + number)):
        lookup.push(token)
        assert token != 8 or index < 60 or not lookup.draft(99)


@pytest.mark.parametrize("alphabet", [2, 3, 10, 200])
@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_drafts_that_are_always_wrong_cost_two_percent_and_a_call(cost: Cost, alphabet: int) -> None:
    """An enemy who knows every draft: it is right while nothing is drafted and wrong whenever something is."""
    lookup, spent, drafts = look_up([], cost=cost), 0.0, 0
    for number in range(1, 3000):
        draft = lookup.draft(99)
        drafts += bool(draft)
        spent += 1 + cost.of(len(draft))
        assert spent <= number * (1 + MOST_LOSS) + CREDIT
        assert not lookup.push(draft[0] + 1 if draft else number % alphabet)
    assert drafts > 5


def test_drafts_end_soon_after_they_turn_wrong_and_begin_again() -> None:
    block, random = RNG.integers(0, 1000, 60).tolist(), RNG.integers(0, 4, 600).tolist()
    calls = list(drafts_of(look_up(block, cost=FLOAT), block * 5 + random + block * 5))
    for start, end in ((0, 300), (900, 1200)):
        assert max(drafted for index, drafted in calls if start <= index < end) == LONGEST_DRAFT
    spent = sum(FLOAT.of(drafted) for index, drafted in calls if 330 <= index < 900)
    saved = 570 - sum(330 <= index < 900 for index, _ in calls)
    assert spent < saved + 0.03 * 570


def test_a_token_costs_less_than_a_tenth_of_a_millisecond() -> None:
    text = RNG.integers(0, 30, 8192).tolist()
    start = time.process_time()
    lookup = look_up(text)
    for token in text:
        lookup.push(token)
        lookup.draft(99)
    assert time.process_time() - start < 8192 * 1e-4


# What is generated.


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


# Where it is used.


def test_it_is_refused_by_name_where_the_answer_would_change(tiny_artifact: Path) -> None:
    model = Qwen3VL.load(tiny_artifact, threads=1, check=False)
    with pytest.raises(InputError, match=r"^prompt_lookup: of 2 rows in a batch .*Leave it out"):
        model.generate_batch(["Hi", "Hello"], 2, prompt_lookup=True)
    assert len(model.generate_batch(["Hi", "Hello"], 2)) == 2
    rounding = model_of(model.artifact, {"method": "int8_dynamic"})
    with pytest.raises(InputError, match=r"^prompt_lookup: int8_dynamic rounds the tokens of a call together"):
        rounding.stream("Hi", prompt_lookup=True)
    assert rounding.decide_lookup(1, None) is None


def model_of(artifact: Artifact, plan: dict[str, Any], model_type: str = "qwen3_vl") -> Qwen3VL:
    """The model as if its recipe quantized the decoder in this way."""
    manifest = artifact.manifest
    recipe = {**manifest.recipe, "quantization": {"decoder_model_merged": plan}}
    facts = dataclasses.replace(manifest.facts, model_type=model_type)
    return Qwen3VL(Artifact(artifact.root, dataclasses.replace(manifest, recipe=recipe, facts=facts)), threads=1)


@pytest.mark.parametrize(
    ("rows", "asked", "model_type", "used"),
    [
        (1, None, "qwen3_vl", True),
        (1, False, "qwen3_vl", False),
        (2, None, "qwen3_vl", False),
        (2, False, "qwen3_vl", False),
        (1, None, "qwen3_vl_moe", False),
        (1, True, "qwen3_vl_moe", True),
    ],
)
def test_where_it_is_used(tiny_artifact: Path, rows: int, asked: bool | None, model_type: str, used: bool) -> None:
    model = model_of(open_artifact(tiny_artifact, check=False), {"method": "none"}, model_type)
    assert model.decide_lookup(rows, asked) == (FLOAT if used else None)


@pytest.mark.parametrize(
    ("plan", "cost"),
    [
        ({"method": "none"}, FLOAT),
        ({"method": "int8", "accuracy_level": 0}, FLOAT),
        ({"method": "int8", "accuracy_level": 4}, EIGHT_BITS),
        ({"method": "int4", "accuracy_level": 4}, EIGHT_BITS),
        ({"method": "int4", "accuracy_level": 0}, UNPACKED),
        ({"method": "source", "accuracy_level": 1}, UNPACKED),
    ],
)
def test_what_a_draft_costs_follows_from_the_recipe(tiny_artifact: Path, plan: dict[str, Any], cost: Cost) -> None:
    model = model_of(open_artifact(tiny_artifact, check=False), plan)
    assert model.decide_lookup(1, True) == cost
    assert model.decide_lookup(1, None) == (None if plan.get("accuracy_level") == 4 else cost)


def test_commands_and_calls_have_it_on_unless_told_otherwise(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(generate_module, "PromptLookup", lambda *given: made.append(given) or PromptLookup(*given))
    options = ("run", tiny_artifact, "--prompt", "Count to nine.", "--max-new-tokens", 4)
    texts = [invoke(*options, *more).stdout for more in ((), ("--no-prompt-lookup",), ("--prompt-lookup",))]
    assert len(made) == 2 and len({*texts}) == 1
    model = Qwen3VL.load(tiny_artifact, threads=1, check=False)
    assert model.generate("Count to nine.", 4) == model.generate("Count to nine.", 4, prompt_lookup=False)
    assert len(made) == 3
    assert made[-1][1] == {*model.stop_ids, model.facts.image_token_id, model.facts.video_token_id}
    list(model.generate_steps(model.prepare([as_messages("Hi")]), 2))  # as the harness calls it
    assert len(made) == 3
