"""The whole runtime on the tiny artifact: the same answer in every way of computing it, and readable errors."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_tests.harness.cases.picture_kinds import PHOTOGRAPH
from qwen3vl_export.artifact import Artifact, open_artifact
from qwen3vl_export.contract import EMBED_TOKENS, IMAGE_GRID_THW, INPUT_IDS, INPUTS_EMBEDS, PIXEL_VALUES
from qwen3vl_export.errors import ArtifactError, InputError
from qwen3vl_export.runtime import GREEDY, Image, Limits, Prepared, Qwen3VL, Sampling, Video
from qwen3vl_export.runtime.decoder import embed_generated
from qwen3vl_export.runtime.generate import prefill
from qwen3vl_export.runtime.positions import rope_index
from qwen3vl_export.runtime.prompts.messages import as_messages
from qwen3vl_export.runtime.prompts.prompt import ChatTemplate

RNG = np.random.default_rng(23)
PICTURE = RNG.integers(0, 256, (96, 64, 3), np.uint8)
CLIP = [np.full((64, 64, 3), value, np.uint8) for value in (0, 90, 180, 255)]
QUESTION = [Image(PHOTOGRAPH), "What is this?"]
CONVERSATIONS = [
    as_messages("What is 2+3?"),
    as_messages([Image(PICTURE), "How many shapes are there?"]),
    as_messages([Image(PICTURE), Image(PICTURE[:64]), "Which picture is taller?"]),
    as_messages([Video(CLIP), "What changes?"]),
]
NEVER = frozenset[int]()


@pytest.fixture(scope="module")
def model(tiny_artifact: Path) -> Qwen3VL:
    return Qwen3VL.load(tiny_artifact, threads=1)


@pytest.fixture(scope="module")
def batch(model: Qwen3VL) -> Prepared:
    return model.prepare(CONVERSATIONS)


def prompt_logits(model: Qwen3VL, prepared: Prepared, chunk: int | None = None) -> Any:
    features = model.encode_images(prepared.pixel_values, prepared.image_grid_thw)
    return prefill(model.sessions, prepared, features, chunk)[0]


def test_pieces_add_up_to_the_answer(model: Qwen3VL) -> None:
    pieces = list(model.stream(QUESTION, max_new_tokens=12))
    assert all(pieces) and "".join(pieces) == model.generate(QUESTION, max_new_tokens=12) != ""


def test_a_seed_repeats_an_answer(model: Qwen3VL) -> None:
    def answer(seed: int) -> str:
        return model.generate(QUESTION, max_new_tokens=24, temperature=4.0, top_k=0, seed=seed)

    assert answer(1) == answer(1)
    assert len({answer(seed) for seed in range(4)}) > 1


def test_no_temperature_is_greedy(model: Qwen3VL) -> None:
    ids = model.generate_ids(model.prepare([as_messages(QUESTION)]), 12, GREEDY)[0]
    assert model.generate(QUESTION, max_new_tokens=12, temperature=0) == model.tokenizer.decode(ids)


def test_a_batch_answers_as_its_questions_alone(model: Qwen3VL) -> None:
    """Rows with no picture, one, two and a video, of different lengths."""
    alone = [model.generate(conversation, 16, temperature=0) for conversation in CONVERSATIONS]
    assert model.generate_batch(CONVERSATIONS, 16, temperature=0) == alone
    letter = alone[0][-1]
    stopped = [text.partition(letter)[0] for text in alone]
    assert model.generate_batch(CONVERSATIONS, 16, temperature=0, stop=letter) == stopped
    assert [model.generate(row, 16, temperature=0, stop=letter) for row in CONVERSATIONS] == stopped


def test_a_prompt_that_ends_in_a_thought_begins_the_answer_there(model: Qwen3VL, tiny_artifact: Path) -> None:
    """As the templates of Thinking models end."""
    thinker = Qwen3VL.load(tiny_artifact, threads=1)
    source = (tiny_artifact / "chat_template.jinja").read_text("utf-8")
    thinker.preparer.templates = {"default": ChatTemplate.of(source + "{{- '<think>\\n' -}}")}
    answer = thinker.stream(QUESTION, 4, temperature=0)
    assert {part.kind for part in answer.parts()} == {"reasoning"}
    assert answer.thinking and answer.reply.content == "" and answer.reply.reasoning == answer.text.strip() != ""
    assert not model.stream(QUESTION, 4).thinking


def test_tools_reach_the_prompt(model: Qwen3VL, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[Prepared] = []
    prepare = model.prepare
    monkeypatch.setattr(
        model, "prepare", lambda *args, **kwargs: prompts.append(prepare(*args, **kwargs)) or prompts[-1]
    )
    tool = {"type": "function", "function": {"name": "weather"}}
    model.reply("Weather?", 2, tools=[tool])
    model.generate_batch(["Weather?", "Hi"], 2, tools=[tool])
    assert [text.count('{"name": "weather"}') for prepared in prompts for text in prepared.texts] == [1, 1, 1]
    model.generate("Weather?", 2)
    assert "weather" not in prompts[-1].texts[0]


def test_penalties_and_min_p_reach_the_tokens(model: Qwen3VL) -> None:
    plain = model.generate(QUESTION, max_new_tokens=24, temperature=0)
    assert model.generate(QUESTION, max_new_tokens=24, temperature=9.0, min_p=1.0, seed=1) == plain
    assert model.generate(QUESTION, max_new_tokens=24, temperature=0, repetition_penalty=20.0) != plain
    drawn = {model.generate(QUESTION, 24, temperature=4.0, seed=1, presence_penalty=penalty) for penalty in (-2, 0, 2)}
    assert len(drawn) == 3


@pytest.mark.parametrize("chunk", [1, 5, 16, 512, None])
def test_chunks_do_not_change_the_logits(model: Qwen3VL, chunk: int | None) -> None:
    for conversation in CONVERSATIONS:
        prepared = model.prepare([conversation])
        whole = prompt_logits(model, prepared)
        np.testing.assert_allclose(prompt_logits(model, prepared, chunk), whole, atol=1e-4)


@pytest.mark.parametrize("chunk", [7, None])
def test_a_padded_batch_is_its_rows(model: Qwen3VL, batch: Prepared, chunk: int | None) -> None:
    alone = [prompt_logits(model, model.prepare([conversation]))[0] for conversation in CONVERSATIONS]
    np.testing.assert_allclose(prompt_logits(model, batch, chunk), np.stack(alone), atol=1e-4)
    ids = [model.generate_ids(model.prepare([conversation]), 16, GREEDY)[0] for conversation in CONVERSATIONS]
    assert model.generate_ids(batch, 16, GREEDY, prefill_chunk=chunk) == ids


def test_steps_continue_the_positions_of_the_pictures(model: Qwen3VL, batch: Prepared) -> None:
    """Each step's logits equal those of prompt and answer read at once, whose positions count the whole row."""
    steps = list(model.generate_steps(batch, 6, GREEDY, stop_ids=NEVER))
    answer = np.stack([step.tokens for step in steps[:-1]], axis=1)
    input_ids = np.concatenate((batch.input_ids, answer), axis=1)
    mask = np.concatenate((batch.attention_mask, np.ones_like(answer)), axis=1)
    positions, _ = rope_index(input_ids, mask, batch.image_grid_thw, model.facts)
    features = model.encode_images(batch.pixel_values, batch.image_grid_thw)
    logits, _ = model.decode(model.embed_inputs(input_ids, features), mask, positions)
    stepwise = np.stack([step.logits for step in steps], axis=1)
    np.testing.assert_allclose(logits[:, -len(steps) :], stepwise, atol=1e-4)


def test_logits_of_the_last_tokens_alone(model: Qwen3VL, batch: Prepared) -> None:
    features = model.encode_images(batch.pixel_values, batch.image_grid_thw)
    embeds = model.embed_inputs(batch.input_ids, features)
    every, _ = model.decode(embeds, batch.attention_mask, batch.position_ids)
    last, cache = model.decode(embeds, batch.attention_mask, batch.position_ids, num_logits_to_keep=2)
    assert every.shape[1] == batch.input_ids.shape[1] == cache.length
    np.testing.assert_allclose(last, every[:, -2:], atol=1e-5)


def test_a_row_stops_alone(model: Qwen3VL, batch: Prepared) -> None:
    free = model.generate_ids(batch, 8, GREEDY, stop_ids=NEVER)
    assert [len(row) for row in free] == [8] * len(CONVERSATIONS)
    stop = free[0][1]
    stopped = model.generate_ids(batch, 8, GREEDY, stop_ids=frozenset({stop}))
    assert stopped == [row[: row.index(stop) + 1] if stop in row else row for row in free]


def test_stop_tokens_leave_no_text(model: Qwen3VL) -> None:
    assert model.stop_ids == {514, 512}
    prepared = model.prepare([as_messages(QUESTION)])
    ids = model.generate_ids(prepared, 64, GREEDY)[0]
    assert ids[-1] in model.stop_ids
    assert model.answer(prepared, GREEDY, Limits(64)).read() == model.tokenizer.decode(ids[:-1])


def test_the_answer_ends_with_the_context(tiny_artifact: Path) -> None:
    artifact = open_artifact(tiny_artifact)
    length = Qwen3VL(artifact).prepare([as_messages("Hi")]).input_ids.shape[1]
    facts = dataclasses.replace(artifact.manifest.facts, max_position_embeddings=length + 3)
    small = Qwen3VL(Artifact(tiny_artifact, dataclasses.replace(artifact.manifest, facts=facts)))
    ids = small.generate_ids(small.prepare([as_messages("Hi")]), 50, GREEDY, stop_ids=NEVER)
    assert len(ids[0]) == 4  # three fit in, and one more is read off the last


def test_an_image_token_the_model_wrote_is_text(model: Qwen3VL) -> None:
    tokens = np.array([[model.facts.image_token_id, 7], [3, 4]])
    rows = model.sessions.run(EMBED_TOKENS, {INPUT_IDS: tokens}, [INPUTS_EMBEDS])[0]
    np.testing.assert_array_equal(embed_generated(model.sessions, tokens), rows)
    np.testing.assert_array_equal(embed_generated(model.sessions, tokens[1:]), rows[1:])


def test_features_of_other_pictures_are_refused(model: Qwen3VL, batch: Prepared) -> None:
    features = model.encode_images(batch.pixel_values, batch.image_grid_thw)
    with pytest.raises(InputError, match=rf"image_features has {len(features) - 1} rows"):
        model.embed_inputs(batch.input_ids, features[:-1])


def test_the_graph_itself_refuses_grids_that_do_not_add_up(model: Qwen3VL, batch: Prepared) -> None:
    feeds = {PIXEL_VALUES: batch.pixel_values[:-4], IMAGE_GRID_THW: batch.image_grid_thw}
    graph = model.artifact.manifest.encoders[0].graph
    with pytest.raises(InputError, match=rf"^{graph}: .*pixel_values"):
        model.sessions.run(graph, feeds, ["image_features"])


def test_nothing_is_checked_late(model: Qwen3VL) -> None:
    with pytest.raises(InputError, match="no such image"):
        model.stream([Image("nowhere.png"), "What is this?"])  # before any piece is asked for
    with pytest.raises(InputError, match="temperature"):
        model.stream("Hi", temperature=-1.0)
    with pytest.raises(InputError, match="max_new_tokens is 0"):
        model.stream("Hi", max_new_tokens=0)
    with pytest.raises(InputError, match="stop is"):
        model.stream("Hi", stop="")
    with pytest.raises(InputError, match="prefill_chunk is 0"):
        model.generate_ids(model.prepare([as_messages("Hi")]), 4, Sampling(), prefill_chunk=0)


def test_an_altered_file_is_refused(tiny_artifact: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_artifact, copy)
    Qwen3VL.load(copy)
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text().replace("user", "User"))
    with pytest.raises(ArtifactError, match=r"chat_template\.jinja: was altered, its sha256 differs"):
        Qwen3VL.load(copy)
    with pytest.raises(ArtifactError, match=r"no manifest\.json here"):
        Qwen3VL.load(tmp_path)


@pytest.mark.parametrize("bound", ["tiny_fixed_artifact", "tiny_buckets_artifact"])
def test_bound_encoders_give_the_features_of_the_free_one(
    model: Qwen3VL, bound: str, request: pytest.FixtureRequest
) -> None:
    """Same patches, same grids: call after call, frame after frame, as in one call."""
    fixed = Qwen3VL.load(request.getfixturevalue(bound), threads=1)
    grids = {encoder.grid for encoder in fixed.artifact.manifest.encoders}
    prepared = fixed.prepare([as_messages([Image(PHOTOGRAPH), Video(CLIP), Image(PICTURE), "What is this?"])])
    assert {(height, width) for _, height, width in prepared.image_grid_thw.tolist()} <= grids
    features = fixed.encode_images(prepared.pixel_values, prepared.image_grid_thw)
    free = model.encode_images(prepared.pixel_values, prepared.image_grid_thw)
    np.testing.assert_allclose(features, free, atol=1e-4)
    assert fixed.generate_ids(prepared, 8, GREEDY) == model.generate_ids(prepared, 8, GREEDY)


def test_a_grid_no_encoder_is_bound_to(tiny_fixed_artifact: Path) -> None:
    fixed = Qwen3VL.load(tiny_fixed_artifact)
    with pytest.raises(InputError, match=r"no encoder for a grid of 2x2 patches\. The artifact has "):
        fixed.encode_images(np.zeros((4, fixed.facts.patch_dim), np.float32), np.array([[1, 2, 2]]))
