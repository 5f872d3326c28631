"""The model for lmms-eval, on the interface of its release 0.7.3; `scripts/lmms_eval_tiny.py` runs lmms-eval itself."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import PIL.Image
import pytest

from parity_tests.fixtures.paths import ROOT
from parity_tests.harness.cases.exam import exam
from qwen3vl_export.errors import InputError
from qwen3vl_export.runtime import GREEDY, Qwen3VL

QUESTIONS = [question for question in exam(1) if question.images][:3]


class Interface:
    """What a model inherits there: `lmms_eval.api.model.lmms`."""

    is_simple = True
    rank = 0

    def __init__(self) -> None:
        self.task_dict: dict[str, dict[str, list[Any]]] = {}


@dataclass(frozen=True)
class ModelManifest:
    """`lmms_eval.models.registry_v2.ModelManifest`."""

    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """lmms-eval's modules, as far as a model needs them."""
    for name, values in {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": Interface},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    yield
    sys.modules.pop("qwen3vl_export.lmms.model", None)


@pytest.fixture
def model(registry: None, tiny_artifact: Path) -> Any:
    """The class that the registry would find by its entry point, on the tiny artifact."""
    written = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"]["lmms_eval.models"]
    ((name, value),) = written.items()
    manifest = EntryPoint(name, value, "lmms_eval.models").load()()
    assert manifest.model_id == name and manifest.simple_class_path is None
    module, _, kind = manifest.chat_class_path.rpartition(".")
    __import__(module)
    found = getattr(sys.modules[module], kind)
    assert issubclass(found, Interface) and not found.is_simple
    return found(artifact=str(tiny_artifact), batch_size=1, max_batch_size=None, device=None)


def request(number: int, settings: dict[str, Any]) -> Any:
    """A request as `ConfigurableMessagesTask.construct_requests` makes it."""
    return SimpleNamespace(args=("", messages_of, settings, number, "drawn", "test"))


def messages_of(question: Any) -> list[dict[str, Any]]:
    content = [{"type": "image", "url": image} for image in question.images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question.text}]}]


def test_answers_are_those_of_the_runtime_in_the_order_of_the_requests(model: Any, tiny_artifact: Path) -> None:
    model.task_dict = {"drawn": {"test": QUESTIONS}}
    settings = {"max_new_tokens": 48, "temperature": 0, "do_sample": False, "until": ["\n\n"]}
    order = [2, 0, 1]
    answers = model.generate_until([request(number, settings) for number in order])
    runtime = Qwen3VL.load(tiny_artifact)
    for number, answer in zip(order, answers, strict=True):
        question = QUESTIONS[number]
        prepared = runtime.prepare([model_messages(question)])
        ids = [int(step.tokens[0]) for step in runtime.generate_steps(prepared, 48, GREEDY)]
        assert answer == runtime.tokenizer.decode(ids).strip() == question.answers[0]


def model_messages(question: Any) -> list[dict[str, Any]]:
    content = [{"type": "image", "image": image} for image in question.images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question.text}]}]


def test_the_settings_of_a_task_are_the_runtime_s(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, Any, dict[str, Any]]] = []

    def reply(messages: Any, new_tokens: int, stop: Any = None, **settings: Any) -> Any:
        asked.append((new_tokens, stop, settings))
        return SimpleNamespace(content="")

    monkeypatch.setattr(model.model, "reply", reply)
    greedy = {"temperature": 0, "repetition_penalty": 1.0, "presence_penalty": 0.0}
    for settings, expected in (
        ({}, (128, None, greedy)),
        ({"max_new_tokens": 16, "until": "Q:"}, (16, ["Q:"], greedy)),
        ({"until": ["\n\n", "</s>"], "num_beams": 1}, (128, ["</s>"], greedy)),
        ({"do_sample": False, "temperature": 0.7}, (128, None, greedy)),
        ({"temperature": 0.7, "top_p": 0.9, "top_k": None}, (128, None, {"temperature": 0.7, "top_p": 0.9})),
    ):
        model.answer([], settings)
        assert asked[-1] == expected
    model.max_new_tokens = 5
    model.answer([], {"max_new_tokens": 16})
    assert asked[-1][0] == 5


def test_a_system_prompt_comes_first_and_videos_are_paths(registry: None) -> None:
    from qwen3vl_export.lmms.model import as_messages

    image = PIL.Image.new("RGB", (32, 32))
    content = [{"type": "video", "url": "a.mp4"}, {"type": "image", "url": image}, {"type": "text", "text": "?"}]
    system, user = as_messages([{"role": "user", "content": content}], "Be brief.")
    assert system == {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    video, picture, text = user["content"]
    assert video["video"].source == "a.mp4" and picture["image"].source is image and text == content[2]


def test_what_an_artifact_cannot_do_is_said(model: Any, tiny_artifact: Path) -> None:
    from qwen3vl_export.lmms.model import as_messages

    with pytest.raises(InputError, match="3 beams"):
        model.answer([], {"num_beams": 3})
    with pytest.raises(InputError, match="audio"):
        as_messages([{"role": "user", "content": [{"type": "audio", "url": "a.wav"}]}])
    with pytest.raises(InputError, match="device is cuda"):
        type(model)(artifact=str(tiny_artifact), device="cuda")
    for refused in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(NotImplementedError, match="generate_until"):
            refused([])
