"""Settings in every form that checkpoints have: an artifact says what transformers reads, or a line says why not.

Each form goes through the build's reader into files, and the shipped runtime with these files is compared with
transformers on the stored ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from parity_tests.fixtures import forms_table
from parity_tests.fixtures.paths import RECIPES, TINY
from parity_tests.fixtures.settings_forms import (
    FORMS,
    GENERATION,
    IMAGES,
    JINJA,
    PRETTY,
    PROCESSOR,
    TEMPLATE_JSON,
    TOKENIZER,
    TOKENIZER_CONFIG,
    VIDEOS,
    both,
    copy_settings,
    edit,
    nested,
    template,
    without,
    write,
)
from parity_tests.fixtures.standin import artifact_without_graphs, tiny_facts
from parity_tests.harness.cases.matrix import Prompt
from parity_tests.harness.checks.sampling import NAME, STAGE, compare_settings
from parity_tests.harness.judging.outcome import Outcome, judge
from parity_tests.harness.judging.verdicts import load_profile
from parity_tests.harness.sides.bench import FPS, conversation
from parity_tests.harness.sides.pytorch.generation_reference import GenerationReference
from parity_tests.harness.sides.pytorch.pixel_reference import PixelReference
from parity_tests.harness.sides.pytorch.prompt_reference import PromptReference
from qwen3vl_export.errors import CheckpointError
from qwen3vl_export.exporter import plan as planning
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.exporter.checkpoint.settings import Settings
from qwen3vl_export.exporter.plan import plan_build
from qwen3vl_export.exporter.settings import check_settings
from qwen3vl_export.packaging import genai
from qwen3vl_export.packaging.package import Package
from qwen3vl_export.recipe import load_recipe
from qwen3vl_export.runtime import Qwen3VL
from qwen3vl_export.runtime.pictures.preprocess import value_table
from qwen3vl_export.runtime.prepare import Preparer

PIXEL_STEP = 2 / 255  # as for the stage `preprocess`
ONE_PIXEL_STEP_OF_255 = 1.01


def stored(root: Path, form: Callable[[Path], object]) -> Path:
    """The tiny checkpoint's settings in a form."""
    form(copy_settings(root))
    return root


def written(root: Path, out: Path) -> Settings:
    """The settings as a build writes them."""
    settings = open_checkpoint(str(root)).settings
    out.mkdir()
    settings.write(out)
    return settings


def prompts() -> list[Prompt]:
    """A picture above and one within small budgets, a clip, and a text with a token that tokenizers may not know."""
    generator = np.random.default_rng(0)

    def picture(height: int, width: int) -> Image.Image:
        coarse = generator.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)

    clip = tuple(picture(96, 128) for _ in range(10))
    return [
        Prompt((picture(200, 304), picture(80, 64)), (), "What are these?"),
        Prompt((), clip, "What happens?"),
        Prompt((), (), f"Say {PRETTY['added']} twice, it's 2024!"),
    ]


@pytest.mark.parametrize("form", FORMS)
def test_a_runtime_reads_from_the_artifact_what_transformers_reads_from_the_checkpoint(
    form: str, tmp_path: Path
) -> None:
    root = stored(tmp_path / "stored", FORMS[form])
    written(root, tmp_path / "written")
    given = prompts()
    prepared = Preparer(artifact_without_graphs(tmp_path / "written"))([conversation(prompt) for prompt in given])
    grids, pixels = PixelReference(root, FPS)(given)
    assert prepared.image_grid_thw.tolist() == grids.tolist()
    unit = ONE_PIXEL_STEP_OF_255 if form == "videos not rescaled" else PIXEL_STEP
    peak = np.ptp(pixels) / 2
    assert np.abs(prepared.pixel_values - pixels).max() <= unit * max(peak, 1)
    rows = [ids[mask == 1].tolist() for ids, mask in zip(prepared.input_ids, prepared.attention_mask, strict=True)]
    assert rows == PromptReference(root, FPS)(given, grids)
    assert sampling_outcome(root, tmp_path / "written").passed
    forms_table.built(forms_table.SETTINGS, form)


def test_published_files_stay_what_they_are(tmp_path: Path) -> None:
    settings = open_checkpoint(str(copy_settings(tmp_path))).settings
    assert settings.files == {name: (TINY / name).read_bytes() for name in settings.files}
    assert not settings.warnings


@pytest.mark.parametrize(
    "form",
    ["tokenizer.json with other offsets", "extra_special_tokens as a list", "settings of generate at their defaults"],
)
def test_other_words_for_the_same_settings_stay_what_they_are(form: str, tmp_path: Path) -> None:
    settings = open_checkpoint(str(stored(tmp_path, FORMS[form]))).settings
    assert settings.files == {name: (tmp_path / name).read_bytes() for name in settings.files}


@pytest.mark.parametrize("form", FORMS)
def test_transformers_reads_the_written_files_as_the_stored_ones(form: str, tmp_path: Path) -> None:
    root = stored(tmp_path / "stored", FORMS[form])
    written(root, tmp_path / "written")
    before, after = (AutoTokenizer.from_pretrained(path) for path in (root, tmp_path / "written"))
    assert before.get_vocab() == after.get_vocab() and before.special_tokens_map == after.special_tokens_map
    grids = [PixelReference(path, FPS)(prompts())[0].tolist() for path in (root, tmp_path / "written")]
    assert grids[0] == grids[1]
    templates = [PromptReference(path, FPS).template for path in (root, tmp_path / "written")]
    assert templates[0] == templates[1]
    again = open_checkpoint(str(tmp_path / "written")).settings
    assert again.files == {name: (tmp_path / "written" / name).read_bytes() for name in again.files}


def no_eos(root: Path) -> None:
    config = json.loads((root / "config.json").read_text())
    config["text_config"]["eos_token_id"] = None
    write(root, "config.json", config)
    (root / GENERATION).unlink()


def ids_of_another(root: Path) -> None:
    edit("config.json", image_token_id=3)(root)


def text_file(name: str, text: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_text(text, "utf-8")


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "not resized": (edit(IMAGES, do_resize=False), f"{IMAGES}: do_resize is False"),
    "bilinear": (edit(IMAGES, resample=2), f"{IMAGES}: resample is"),
    "nested bilinear": (nested({"resample": 2}, {}), f"{PROCESSOR}: resample is"),
    "videos not resized": (nested({}, {"do_resize": False}), f"{PROCESSOR}: do_resize is False"),
    "square size": (edit(IMAGES, size={"height": 224, "width": 224}), f"{IMAGES}: size has no shortest_edge"),
    "no size": (edit(VIDEOS, size=None), f"{VIDEOS}: size has no shortest_edge"),
    "empty size": (edit(IMAGES, size={"shortest_edge": 9, "longest_edge": 8}), f"{IMAGES}: size has no shortest_edge"),
    "other patches": (edit(VIDEOS, patch_size=14), f"{VIDEOS}: patch_size is 14, config.json says 16"),
    "other processor": (edit(IMAGES, image_processor_type="CLIPImageProcessor"), "image_processor_type is"),
    "other video processor": (
        edit(VIDEOS, video_processor_type="Qwen2VLVideoProcessor"),
        "takes Qwen2VLVideoProcessor",
    ),
    "videos as images of Qwen2-VL": (
        both(edit(IMAGES, image_processor_type="Qwen2VLImageProcessor"), without(VIDEOS)),
        "takes Qwen2VLVideoProcessor for videos",
    ),
    "no pictures": (without(IMAGES), f"no {IMAGES}, and no image_processor in {PROCESSOR}"),
    "no deviation": (edit(IMAGES, image_std=[0.5, 0, 0.5]), "image_mean and image_std are not 3 numbers"),
    "number of frames": (edit(VIDEOS, num_frames=8), f"{VIDEOS}: num_frames is 8 and fps 2"),
    "no frames": (edit(VIDEOS, min_frames=9, max_frames=8), f"{VIDEOS}: fps, min_frames and max_frames allow no frame"),
    "damaged processor": (text_file(PROCESSOR, "{"), f"{PROCESSOR}: it cannot be read"),
    "damaged tokenizer": (text_file(TOKENIZER, "{}"), "the tokenizer cannot be read (it has no 'added_tokens')"),
    "tokenizer left out of a clone": (
        text_file(TOKENIZER, "version https://git-lfs"),
        f"{TOKENIZER}: it cannot be read",
    ),
    "no tokenizer": (without(TOKENIZER), f"no {TOKENIZER}, nor vocab.json and merges.txt"),
    "split specials": (edit(TOKENIZER_CONFIG, split_special_tokens=True), "split_special_tokens is true"),
    "id of no token": (ids_of_another, "config.json: image_token_id is 3, in the tokenizer <|image_pad|> is 524"),
    "no template": (without(JINJA), "no chat template"),
    "damaged template": (text_file(JINJA, "{% if %}"), "the chat template cannot be read"),
    "failing template": (text_file(JINJA, "{{ raise_exception('no') }}"), "the chat template cannot be read"),
    "blind template": (text_file(JINJA, "{{ messages[0].role }}"), "0 <|image_pad|> for 1 images"),
    "damaged template file": (text_file(TEMPLATE_JSON, "[]"), f"{TEMPLATE_JSON}: not a JSON object"),
    "damaged answers": (text_file(GENERATION, "{"), f"{GENERATION}: it cannot be read"),
    "temperature 0": (edit(GENERATION, do_sample=True, temperature=0), f"{GENERATION}: temperature is 0"),
    "no end": (no_eos, "no eos_token_id"),
    "end beyond": (edit(GENERATION, eos_token_id=[514, 9999]), "the model has the ids 0 to 543"),
    "n-grams": (edit(GENERATION, no_repeat_ngram_size=3), f"{GENERATION}: no_repeat_ngram_size is 3"),
    "suppressed": (edit(GENERATION, suppress_tokens=[5]), f"{GENERATION}: suppress_tokens is"),
    "beams": (edit(GENERATION, num_beams=4), f"{GENERATION}: num_beams is 4"),
    "bad words": (edit(GENERATION, bad_words_ids=[[5]]), f"{GENERATION}: bad_words_ids is"),
    "typical": (edit(GENERATION, do_sample=True, typical_p=0.9), f"{GENERATION}: typical_p is 0.9"),
    "shortest answer": (edit(GENERATION, min_new_tokens=4), f"{GENERATION}: min_new_tokens is 4"),
    "guided": (edit(GENERATION, guidance_scale=1.5), f"{GENERATION}: guidance_scale is 1.5"),
    "unknown to genai": (edit(GENERATION, do_sample=True, min_p=0.1), "min_p is 0.1, which onnxruntime-genai does not"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_runtime_follows_is_refused(name: str, tmp_path: Path) -> None:
    form, message = REFUSED[name]
    root = stored(tmp_path, form)
    with pytest.raises(CheckpointError) as caught:
        check_settings(open_checkpoint(str(root)), load_recipe(RECIPES / "tiny.yaml"), print)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    forms_table.refused(forms_table.SETTINGS, name, str(caught.value), root)


def test_settings_are_refused_before_anything_is_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "build_skeletons", lambda *args: pytest.fail("traced"))
    root = stored(tmp_path / "stored", text_file(JINJA, "{% if %}"))
    with pytest.raises(CheckpointError, match="chat template cannot be read"):
        plan_build(load_recipe(RECIPES / "tiny.yaml"), checkpoint=str(root), out=tmp_path / "out", log=print)


@pytest.mark.parametrize(
    "form, warning",
    [
        (edit(GENERATION, max_new_tokens=9), "max_new_tokens is not followed"),
        (edit(GENERATION, chat_format="chatml"), "chat_format is ignored"),
        (both(template(TOKENIZER_CONFIG, "!"), without(JINJA)), "the tokenizer's is taken"),
    ],
)
def test_what_is_left_out_or_chosen_is_said(form: Callable[[Path], object], warning: str, tmp_path: Path) -> None:
    lines: list[str] = []
    check_settings(open_checkpoint(str(stored(tmp_path, form))), load_recipe(RECIPES / "tiny.yaml"), lines.append)
    assert [warning in line for line in lines] == [True]


@pytest.mark.parametrize(
    "form",
    [
        "pictures not rescaled",
        "another rescale_factor",
        "pictures not normalized",
        "another mean and deviation",
        "published",
    ],
)
def test_genai_computes_the_same_pixels(form: str, tmp_path: Path) -> None:
    """Its steps, of which the first divides by 255, on every 8-bit value."""
    root = stored(tmp_path / "stored", FORMS[form])
    written(root, tmp_path / "written")
    steps = genai.processor(Package(tmp_path / "written", tiny_facts(), {}))["processor"]["transforms"]
    attributes = {step["operation"]["name"]: step["operation"].get("attrs", {}) for step in steps}
    mean, std = (np.array(attributes["normalize"][name])[:, None] for name in ("mean", "std"))
    values = (np.arange(256) / 255 - mean) / std
    processor = Qwen2VLImageProcessorPil.from_pretrained(root)
    gray = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (3, 256, 1))
    expected = processor.rescale(gray, processor.rescale_factor) if processor.do_rescale else gray.astype(np.float32)
    if processor.do_normalize:
        expected = processor.normalize(expected, processor.image_mean, processor.image_std)
    assert np.allclose(values, expected[:, :, 0], rtol=1e-5, atol=1e-5)
    rules = Preparer(artifact_without_graphs(tmp_path / "written")).sizing.image_rules
    assert np.allclose(value_table(rules), expected[:, :, 0], rtol=1e-5, atol=1e-6)


def sampling_outcome(checkpoint: Path, artifact: Path) -> Outcome:
    """The verdict of the harness on an artifact's generation settings."""
    runtime = Qwen3VL(artifact_without_graphs(artifact))
    bench: Any = SimpleNamespace(runtime=runtime, generation_reference=GenerationReference(checkpoint))
    return judge(STAGE, NAME, compare_settings(bench), load_profile("float32"), 0.0)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"do_sample": True, "top_k": 50}, "do_sample is True, not False"),
        ({"repetition_penalty": 1.2}, "repetition_penalty is 1.2, not 1.0"),
        ({"top_p": 0.5}, "top_p is 0.5, not 1.0"),
        ({"eos_token_id": 514}, "answers end at [514], not [512, 514]"),
    ],
)
def test_verification_finds_other_generation_settings(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    root = copy_settings(tmp_path / "stored")
    edit(GENERATION, **change)(copy_settings(tmp_path / "artifact"))
    outcome = sampling_outcome(root, tmp_path / "artifact")
    assert not outcome.passed and said in outcome.message
