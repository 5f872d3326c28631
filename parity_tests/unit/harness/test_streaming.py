"""PyTorch a module at a time: the same numbers as with the whole model, and the same verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from parity_tests.faults.catalogue import FAULTS
from parity_tests.faults.detection import first_failure
from parity_tests.harness import verify
from parity_tests.harness.checks.dequantized import dequantized_bench
from parity_tests.harness.diagnosis import layer_trace
from parity_tests.harness.diagnosis.layer_trace import trace_layers
from parity_tests.harness.diagnosis.suspects import DECODER_SUSPECTS, VISION_SUSPECTS
from parity_tests.harness.judging.outcome import Outcome
from parity_tests.harness.sides.bench import Bench
from parity_tests.harness.sides.pytorch import attention
from parity_tests.harness.sides.pytorch import reference as references
from parity_tests.harness.sides.pytorch.forward import encode, read, rope_index
from parity_tests.harness.sides.pytorch.inputs import Inputs, model_arguments
from parity_tests.harness.sides.pytorch.reference import Reference
from parity_tests.harness.sides.pytorch.reference_cache import Store
from parity_tests.harness.sides.pytorch.results import Deferred
from parity_tests.harness.sides.pytorch.streamed_model import units_of
from qwen3vl_export.contract import DECODER
from qwen3vl_export.errors import ParityError

from ...fixtures.moe_checkpoint import WEIGHTS, write_moe_checkpoint
from ...fixtures.paths import TINY
from ...fixtures.quantized_checkpoints import write_quantized_checkpoint

CASES = ("minimum-64x64", "text-only", "batch-of-different-sizes")
GRIDS = ([[1, 4, 6]], [[1, 8, 6], [1, 4, 4]], [])
TEXTS = (np.arange(20, 27)[None], np.arange(40, 44)[None])


def write_without_prefix(directory: Path) -> Path:
    """The tiny checkpoint under names without `model.`, as its base model is saved."""
    return rewrite(directory, lambda name: name.removeprefix("model."))


def write_own_head(directory: Path) -> Path:
    """The tiny checkpoint with a head that differs from the token table, though its configuration ties them."""
    rewrite(directory, lambda name: name)
    tensors = load_file(directory / WEIGHTS)
    tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"].flip(0).contiguous()
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    return directory


def rewrite(directory: Path, rename: Callable[[str], str]) -> Path:
    directory.mkdir(parents=True)
    for file in TINY.iterdir():
        if file.is_file() and file.name != WEIGHTS:
            (directory / file.name).write_bytes(file.read_bytes())
    tensors = {rename(name): tensor for name, tensor in load_file(TINY / WEIGHTS).items()}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    return directory


def write_form(form: str) -> Callable[[Path], Path]:
    def write(directory: Path) -> Path:
        write_quantized_checkpoint(directory, form)
        return directory

    return write


CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    "tied": lambda directory: TINY,
    "own-head": write_own_head,
    "without-prefix": write_without_prefix,
    "mixture": write_moe_checkpoint,
    "mixture-as-modules": lambda directory: write_moe_checkpoint(directory, "modules"),
    **{form: write_form(form) for form in ("fp8", "gptq-desc-act", "awq", "packed-asymmetric")},
}


def inputs_of(reference: Reference, grids: list[list[int]]) -> Inputs:
    """A prompt with random pictures of these grids."""
    config = reference.model.config
    vision, rng = config.vision_config, np.random.default_rng(0)
    ids = [5, 6]
    for _, height, width in grids:
        ids += [
            config.vision_start_token_id,
            *[config.image_token_id] * (height * width // 4),
            config.vision_end_token_id,
        ]
    input_ids = np.array([[*ids, 9, 10, 11]], np.int64)
    patch_dim = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    patches = sum(height * width for _, height, width in grids)
    pixels = rng.uniform(-1, 1, (patches, patch_dim)).astype(np.float32)
    return Inputs(input_ids, np.ones_like(input_ids), pixels, np.array(grids, np.int64).reshape(-1, 3))


def ask(reference: Reference, *questions: Callable[[], Any]) -> None:
    """Ask for results that are not there yet."""
    for question in questions:
        with pytest.raises(Deferred):
            question()


@pytest.mark.parametrize("form", CHECKPOINTS)
def test_streamed_results_are_those_of_the_whole_model_bit_for_bit(form: str, tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS[form](tmp_path / "checkpoint")
    whole, streamed = Reference(checkpoint), Reference(checkpoint, Store(tmp_path / "cache", form), streamed=True)
    prompts = [inputs_of(whole, grids) for grids in GRIDS]
    ask(streamed, *(partial(streamed.prefill, prompt) for prompt in prompts))
    streamed.settle()
    for prompt in prompts:
        expected, result = whole.prefill(prompt), streamed.prefill(prompt)
        for name in ("position_ids", "rope_deltas", "inputs_embeds", "image_features", "logits"):
            np.testing.assert_array_equal(getattr(result, name), getattr(expected, name), name)
    pictures = prompts[1].pixel_values, prompts[1].image_grid_thw
    np.testing.assert_array_equal(streamed.vision(*pictures), whole.vision(*pictures))
    rows = expected.inputs_embeds, prompts[-1].attention_mask, expected.position_ids
    np.testing.assert_array_equal(streamed.decoder(*rows), whole.decoder(*rows))
    for name in (
        "lm_head.weight",
        "model.language_model.layers.2.mlp.gate_proj.weight",
        "model.visual.pos_embed.weight",
    ):
        if form.startswith("mixture") and ".mlp." in name:
            name = "model.language_model.layers.2.mlp.experts.down_proj"
        np.testing.assert_array_equal(streamed.parameter(name), whole.parameter(name), name)


def test_one_module_has_weights_at_a_time_and_each_is_loaded_once(tmp_path: Path) -> None:
    """Whatever is asked about prompts, in any order, is answered in one pass; the tower's features come along."""
    reference = Reference(TINY, Store(tmp_path, "x"), streamed=True)
    modules = dict(units_of(reference.model))
    prompts = [inputs_of(reference, grids) for grids in GRIDS]
    counted: list[int] = []
    loaded: list[tuple[str, int]] = []

    def count_loaded(*_: Any) -> None:
        counted.append(sum(not any(value.is_meta for value in module.parameters()) for module in modules.values()))

    for module in modules.values():
        module.register_forward_pre_hook(count_loaded)
    questions: list[Callable[[], Any]] = []
    for prompt in prompts:
        questions += [partial(reference.continued, prompt, text) for text in TEXTS] + [
            partial(reference.prefill, prompt)
        ]
    pictures = [np.zeros((16, 1536), np.float32), prompts[0].pixel_values], [[[1, 4, 4]], GRIDS[0]]
    questions += [partial(reference.vision, pixels, np.array(grid)) for pixels, grid in zip(*pictures, strict=True)]
    ask(reference, *questions)
    reference.settle(lambda name, calls: loaded.append((name, calls)))
    assert sorted(name for name, _ in loaded) == sorted(modules)
    assert {calls for name, calls in loaded if ".visual." in name} == {3}  # pictures of two prompts, and one alone
    assert {calls for name, calls in loaded if ".visual." not in name} == {len(prompts)}
    assert set(counted) == {1}
    assert all(value.is_meta for value in reference.model.parameters())
    for question in questions:
        question()
    assert reference.results.computed == len(questions) + 1  # the features of the prompt that nobody asked for alone


def test_calls_that_do_not_fit_together_take_another_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = Reference(TINY, Store(tmp_path, "x"), streamed=True)
    prompts = [inputs_of(reference, grids) for grids in GRIDS]
    monkeypatch.setattr(references, "WAITING", 1)
    ask(reference, *(partial(reference.prefill, prompt) for prompt in prompts))
    loaded: list[str] = []
    reference.settle(lambda name, calls: loaded.append(name))
    assert loaded.count("lm_head") == len(prompts)


@pytest.mark.parametrize("asked", [(0,), (0, 1)], ids=["one", "two"])
def test_texts_read_in_one_call_are_read_as_if_alone(asked: Sequence[int], tmp_path: Path) -> None:
    """A batch with padding and pictures; each text against transformers' own call on prompt and text with pixels."""
    reference = Reference(TINY, Store(tmp_path, "x"))
    parts = [inputs_of(reference, grids) for grids in GRIDS[:2]]
    longest = max(part.input_ids.shape[1] for part in parts)
    ids, mask = (
        np.concatenate(
            [np.pad(getattr(part, name), ((0, 0), (longest - part.input_ids.shape[1], 0))) for part in parts]
        )
        for name in ("input_ids", "attention_mask")
    )
    pixels, grids = (np.concatenate([getattr(p, name) for p in parts]) for name in ("pixel_values", "image_grid_thw"))
    prompt = Inputs(ids, mask, pixels, grids)
    texts = [np.repeat(TEXTS[index], 2, axis=0) for index in asked]
    with torch.no_grad():
        features = encode(reference.model, prompt, reference.device)
        prefill, continuations = read(reference.model, prompt, features, reference.device, texts, longest)
        for text, continuation in zip(texts, continuations, strict=True):
            whole = prompt.followed_by(text)
            arguments = model_arguments(whole, reference.model.config, reference.device)
            expected = reference.model(**arguments).logits.numpy()
            seen, start = mask.astype(bool), longest - 1
            np.testing.assert_allclose(prefill.logits[seen], expected[:, :longest][seen], atol=2e-4)
            np.testing.assert_allclose(continuation.logits, expected[:, start:], atol=2e-4)
            positions, deltas = rope_index(reference.model, whole, reference.device)
            np.testing.assert_array_equal(continuation.position_ids, positions[..., longest:].numpy())
            np.testing.assert_array_equal(prefill.rope_deltas, deltas.numpy())


def test_the_tower_s_features_take_the_place_of_pixels_bit_for_bit() -> None:
    reference = Reference(TINY)
    prompt = inputs_of(reference, GRIDS[1])
    with torch.no_grad():
        expected = reference.model(**model_arguments(prompt, reference.model.config, reference.device)).logits
    np.testing.assert_array_equal(reference.prefill(prompt).logits, expected.numpy())


def test_attention_beyond_memory_is_pytorch_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = Reference(TINY)
    prompt = inputs_of(reference, GRIDS[0])
    eager = reference.prefill(prompt).logits
    calls = []
    monkeypatch.setattr(attention, "MOST_SCORES", 1)
    monkeypatch.setattr(
        attention,
        "sdpa_attention_forward",
        lambda *args, **kwargs: calls.append(args) or sdpa_attention_forward(*args, **kwargs),
    )
    again = Reference(TINY)
    np.testing.assert_allclose(again.prefill(prompt).logits, eager, atol=1e-4)
    layers = reference.model.config.vision_config.depth + reference.model.config.text_config.num_hidden_layers
    assert len(calls) == layers


def test_a_checkpoint_without_a_layers_tensor_is_refused(tmp_path: Path) -> None:
    checkpoint = rewrite(
        tmp_path / "checkpoint", lambda name: name.replace("layers.1.mlp.up_proj", "layers.1.mlp.lost")
    )
    reference = Reference(checkpoint, Store(tmp_path / "cache", "x"), streamed=True)
    ask(reference, partial(reference.prefill, inputs_of(reference, [])))
    with pytest.raises(ParityError, match=r"no tensor model\.language_model\.layers\.1\.mlp\.up_proj\.weight"):
        reference.settle()


def test_a_disk_that_refuses_results_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path, "x")
    reference = Reference(TINY, store, streamed=True)
    prompt = inputs_of(reference, [])
    monkeypatch.setattr(store, "put", lambda key, value: None)
    ask(reference, partial(reference.prefill, prompt))
    with pytest.raises(ParityError, match="the disk refused"):
        reference.settle()


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verifications stream PyTorch, however much memory there is."""
    monkeypatch.setattr(verify, "must_stream", lambda *_: True)


def outcomes_of(bench: Bench) -> dict[str, Outcome]:
    return {outcome.id: outcome for outcome in verify.run(bench, "quick", cases=CASES).outcomes}


def test_verdicts_are_those_of_the_whole_model(
    built: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of all stages: equal measures, but for greedy tokens, which are proven by induction and pass or fail alike."""
    artifact = built("tiny-int4")
    whole = outcomes_of(verify.open_bench(artifact, "quick"))
    monkeypatch.setattr(verify, "must_stream", lambda *_: True)
    bench = verify.open_bench(artifact, "quick", cache=tmp_path)
    assert bench.reference.streamed
    streamed = outcomes_of(bench)
    assert list(streamed) == list(whole)
    for name, outcome in streamed.items():
        assert outcome.passed == whole[name].passed, outcome.message
        if outcome.stage.rpartition("_")[2] not in ("decode", "generate"):
            assert outcome.measures == pytest.approx(whole[name].measures, rel=1e-4, abs=1e-6), name


def test_a_tower_that_is_not_quantized_is_computed_once_for_both_references(
    built: Callable[[str], Path], tmp_path: Path
) -> None:
    bench = verify.open_bench(built("tiny-int4"), "quick", cache=tmp_path)
    assert dequantized_bench(bench).reference.results.tower is None
    manifest = bench.artifact.manifest
    decoder_alone = {DECODER: manifest.recipe["quantization"][DECODER]}
    artifact = replace(
        bench.artifact, manifest=replace(manifest, recipe={**manifest.recipe, "quantization": decoder_alone})
    )
    assert (
        dequantized_bench(replace(bench, artifact=artifact, dequantized=None)).reference.results.tower
        is bench.reference.results
    )


def test_both_sides_are_never_in_memory_together(
    built: Callable[[str], Path], stream: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bench = verify.open_bench(built("tiny"), "quick", cache=tmp_path)
    sessions = bench.runtime.sessions
    opened: list[int] = []
    verify.run(bench, "quick", cases=CASES[:1], report=lambda *_: opened.append(len(sessions._sessions)))
    assert opened and set(opened) == {0}


@pytest.mark.parametrize(
    ("name", "stage"), [("positions-from-token-count", "decode"), ("corrupted-byte-sealed", "decoder")]
)
def test_planted_faults_are_found_by_induction(
    name: str, stage: str, built: Callable[[str], Path], stream: None, tmp_path: Path
) -> None:
    """Of wrong steps of the runtime the logits tell first, since they are those that its tokens were chosen from."""
    (fault,) = (fault for fault in FAULTS if fault.name == name)
    failure = first_failure(fault, built(fault.recipe), tmp_path)
    assert failure is not None and failure.stage == stage


@pytest.mark.parametrize("stage", ["vision", "decoder"])
def test_all_known_mistakes_are_tried_in_one_pass(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as on the whole model: none sees what another one changes, and nothing stays changed."""
    whole, streamed = Reference(TINY), Reference(TINY, Store(tmp_path, "x"), streamed=True)
    prompt = inputs_of(whole, GRIDS[1])
    start, mask = whole.prefill(prompt), prompt.attention_mask
    pictures = prompt.pixel_values, prompt.image_grid_thw
    streamed.obtain(lambda: streamed.vision(*pictures))

    def mistakes(reference: Reference) -> list[Callable[[], Any]]:
        if stage == "vision":
            return [partial(suspect, reference, *pictures) for suspect in VISION_SUSPECTS.values()]
        return [partial(suspect, reference, start, mask) for suspect in DECODER_SUSPECTS.values()]

    expected = [mistake() for mistake in mistakes(whole)]
    loads: list[str] = []
    monkeypatch.setattr(
        streamed.loaded, "_load", lambda name, load=streamed.loaded._load: loads.append(name) or load(name)
    )
    for result, truth in zip(streamed.together(mistakes(streamed)), expected, strict=True):
        np.testing.assert_array_equal(result, truth)
    assert len(loads) == len(set(loads))
    (again,) = streamed.together([lambda: streamed.decoder(start.inputs_embeds, mask, start.position_ids)])
    np.testing.assert_array_equal(again, start.logits)


def test_a_trace_of_a_streamed_model_is_that_of_the_whole(
    built: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Point by point, with values on disk and read from the graph a few at a time, the artifact's sessions closed."""
    bench = verify.open_bench(built("tiny"), "quick", cache=tmp_path)
    case = next(case for case in bench.cases if case.name == CASES[0])
    expected = trace_layers(bench, [], case)
    monkeypatch.setattr(verify, "must_stream", lambda *_: True)
    monkeypatch.setattr(layer_trace, "IN_MEMORY", 0)
    monkeypatch.setattr(layer_trace, "AT_ONCE", 1 << 16)
    streamed = verify.open_bench(built("tiny"), "quick", cache=tmp_path / "streamed")
    assert trace_layers(streamed, [], case) == expected
    assert not streamed.runtime.sessions._sessions
