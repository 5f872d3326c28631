"""An artifact as a model of lmms-eval: its chat messages become the runtime's, answers are returned as text.

Questions are asked one after another, as `verify --tasks` asks them: greedily unless a task samples, without a system
prompt unless one is given, reasoning left out of what is scored. Knows the runtime and lmms-eval's interface
(`lmms_eval.api.model`); nothing about tasks or scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lmms_eval.api.model import lmms
from tqdm import tqdm

from ..errors import InputError
from ..runtime import Image, Qwen3VL, Video

GREEDY = {"temperature": 0, "repetition_penalty": 1.0, "presence_penalty": 0.0}  # whatever the checkpoint says
NEW_TOKENS = 128  # where a task does not say, as lmms-eval's own Qwen models
DEFAULT_UNTIL = "\n\n"  # where a task does not say; lmms-eval's own Qwen models ignore it too


class ArtifactModel(lmms):  # type: ignore[misc]  # without lmms-eval it is Any
    """The model `qwen3vl_export`.

    Args:
        artifact: directory of a Qwen3-VL artifact that answers.
        precision: one of the artifact's, such as `q4`; default: its own.
        min_pixels, max_pixels: of a picture, as for `Qwen3VL.load`.
        system_prompt: precedes every question; lmms-eval's `qwen3_vl` has "You are a helpful assistant.".
        threads: per operator; default: as onnxruntime chooses.
        max_new_tokens: of an answer, in place of what tasks ask for.
        batch_size, max_batch_size, device: what lmms-eval passes to every model; questions are asked one at a time on
            the CPU.

    Raises:
        ArtifactError, InputError: as `Qwen3VL.load`, or another device.
    """

    is_simple = False

    def __init__(
        self,
        artifact: str,
        precision: str = "",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        system_prompt: str = "",
        threads: int | None = None,
        max_new_tokens: int | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        if device not in (None, "cpu"):
            raise InputError(f"device is {device}, artifacts run on the CPU here", "Pass --device cpu, or leave it out")
        self.model = Qwen3VL.load(
            str(artifact), threads, precision=str(precision), min_pixels=min_pixels, max_pixels=max_pixels
        )
        self.system_prompt = system_prompt
        self.max_new_tokens = max_new_tokens
        self.batch_size = 1

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answer to each request, in their order.

        Args:
            requests: lmms-eval's `Instance`s, whose `args` are a text, what makes messages of a document, settings of
                the generation, and the document's number, task and split.
        """
        answers = []
        for request in tqdm(requests, desc="artifact", disable=self.rank != 0):
            _, doc_to_messages, settings, number, task, split = request.args
            messages = as_messages(doc_to_messages(self.task_dict[task][split][number]), self.system_prompt)
            answers.append(self.answer(messages, settings))
        return answers

    def answer(self, messages: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
        """The answer to a conversation, without reasoning.

        Args:
            settings: of the generation, as tasks name them.

        Raises:
            InputError: beam search.
        """
        if settings.get("num_beams") not in (None, 1):
            raise InputError(f"the task asks for {settings['num_beams']} beams", "Choose another task")
        new_tokens = self.max_new_tokens or settings.get("max_new_tokens") or NEW_TOKENS
        return self.model.reply(messages, new_tokens, stop=stops_of(settings), **sampling_of(settings)).content

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("an artifact answers questions: choose tasks of the type generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("an artifact is asked in one round: choose tasks of the type generate_until")


def as_messages(messages: Iterable[Mapping[str, Any]], system_prompt: str = "") -> list[dict[str, Any]]:
    """The runtime's messages of lmms-eval's, in which pictures and videos are under `url`: images of Pillow, or paths.

    Raises:
        InputError: audio.
    """
    read: list[dict[str, Any]] = [{"role": m["role"], "content": list(map(as_item, m["content"]))} for m in messages]
    if system_prompt:
        read.insert(0, {"role": "system", "content": [{"type": "text", "text": system_prompt}]})
    return read


ITEMS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "text": lambda item: {"type": "text", "text": item["text"]},
    "image": lambda item: {"type": "image", "image": Image(item["url"])},
    "video": lambda item: {"type": "video", "video": Video(item["url"])},
}


def as_item(item: Mapping[str, Any]) -> dict[str, Any]:
    if item["type"] not in ITEMS:
        raise InputError(f"the task has {item['type']}, which Qwen3-VL does not take", "Choose another task")
    return ITEMS[item["type"]](item)


def stops_of(settings: Mapping[str, Any]) -> list[str] | None:
    """The strings that end an answer; None if a task names none."""
    until = settings.get("until") or []
    stops = [until] if isinstance(until, str) else until
    return [stop for stop in stops if stop != DEFAULT_UNTIL] or None


def sampling_of(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the runtime's sampling: greedy unless a task samples."""
    if not settings.get("do_sample", True) or not settings.get("temperature"):
        return GREEDY
    names = ("temperature", "top_p", "top_k")
    return {name: settings[name] for name in names if settings.get(name) is not None}
