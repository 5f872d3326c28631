"""The exam, taken by the unmodified transformers model with plain greedy `generate`, one question at a time.

Knows how transformers wants its inputs. Uses nothing of the training's own forward pass, attention or position code.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from parity_tests.harness.cases.exam import exam, group_of, video_exam
from parity_tests.harness.cases.questions import brightness
from parity_tests.harness.cases.tasks import Question
from scripts.tiny_training import photographs
from scripts.tiny_training.patches import MERGE, to_patches

MAX_NEW_TOKENS = 64
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
CAT_WIDTHS = (96, 128, 192, 256, 320, 451, 512)  # the demo's photograph, whole, at several sizes


@dataclass(frozen=True)
class Answered:
    question: Question
    reply: str

    @property
    def right(self) -> bool:
        return self.reply in self.question.answers


class Candidate:
    """The checkpoint as a user of transformers would ask it."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(checkpoint)
        self.processor = Qwen2VLImageProcessorPil.from_pretrained(checkpoint)

    @torch.no_grad()
    def reply(self, question: Question) -> str:
        content = [{"type": "image"}] * len(question.images) + [{"type": "video"}] * bool(question.frames)
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": question.text}]}]
        prompt = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs: dict[str, torch.Tensor] = {}
        if question.images:
            pixels = self.processor(images=list(question.images), return_tensors="pt")
            inputs = {"pixel_values": pixels["pixel_values"], "image_grid_thw": pixels["image_grid_thw"]}
            prompt = expand(prompt, IMAGE_PAD, [IMAGE_PAD * tokens_of(grid) for grid in pixels["image_grid_thw"]])
        if question.frames:
            patches, grid = to_patches(question.frames)
            inputs["pixel_values_videos"] = torch.from_numpy(patches).float() / 127.5 - 1
            inputs["video_grid_thw"] = torch.tensor([grid])
            frame = f"<|vision_start|>{VIDEO_PAD * (tokens_of(grid) // grid[0])}<|vision_end|>"
            text = "".join(f"<{step + 0.25:.1f} seconds>{frame}" for step in range(grid[0]))  # two frames a second
            prompt = expand(prompt, VIDEO_PAD, [text])
        input_ids = self.tokenizer(prompt, return_tensors="pt").input_ids
        kinds = (input_ids == self.model.config.image_token_id) + 2 * (input_ids == self.model.config.video_token_id)
        self.model.model.rope_deltas = None  # transformers keeps it between calls
        output = self.model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            mm_token_type_ids=kinds,
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            **inputs,
        )
        return self.tokenizer.decode(output[0, input_ids.shape[1] :], skip_special_tokens=True)


def tokens_of(grid: Iterable[int]) -> int:
    time, rows, columns = (int(side) for side in grid)
    return time * rows * columns // MERGE**2


def expand(prompt: str, pad: str, replacements: list[str]) -> str:
    pieces = prompt.split(pad)
    return "".join(piece + text for piece, text in zip(pieces, [*replacements, ""], strict=True))


def cat_questions() -> list[Question]:
    """A photograph from training, whole and at sizes of its own: what the demo may ask about it."""
    questions = []
    for width in CAT_WIDTHS:
        cat = photographs.photograph("chelsea")
        size = width, round(width * cat.height / cat.width)
        image = cat.resize(size, Image.Resampling.BICUBIC)
        asked = [
            ("What is this?", "a cat"),
            ("What animal is this?", "a cat"),
            ("Describe the picture.", "a photograph of a cat"),
            ("Is this a photograph or a drawing?", "a photograph"),
            ("What is the main color?", photographs.main_color(image)),
            ("Is the picture bright or dark?", brightness(image)),
            ("Is the picture wide or tall?", "wide"),
        ]
        questions += [
            Question("photograph", f"cat-{width}-{index}", "photo", (image,), text, (answer,))
            for index, (text, answer) in enumerate(asked)
            if answer is not None
        ]
    return questions


def take(candidate: Candidate, questions: list[Question]) -> list[Answered]:
    return [Answered(question, candidate.reply(question)) for question in questions]


def evaluate(checkpoint: Path, per_size: int) -> str:
    """-> the tables of the model card, in Markdown."""
    candidate = Candidate(checkpoint)
    answered = take(candidate, exam(per_size))
    clips, cat = take(candidate, video_exam()), take(candidate, cat_questions())
    total = sum(a.right for a in answered)
    return "\n".join(
        [
            f"Exact match on the held-out exam: {total} of {len(answered)} = {total / len(answered):.1%}",
            f"Video exam: {score(clips)}. A photograph seen in training, at other sizes: {score(cat)}",
            "",
            table("Picture size", group(answered, size_of)),
            "",
            table("Kind of question", group([*answered, *clips], lambda a: a.question.kind)),
            "",
            "Wrong answers:",
            *(
                f"- {a.question.id}: {a.question.text} {a.reply!r}, not {a.question.answers[0]!r}"
                for a in [*answered, *clips, *cat]
                if not a.right
            ),
        ]
    )


def size_of(answered: Answered) -> str:
    return group_of(answered.question).replace("-", " ")


def group(answered: list[Answered], key: Callable[[Answered], str]) -> dict[str, list[Answered]]:
    groups: dict[str, list[Answered]] = defaultdict(list)
    for one in answered:
        groups[key(one)].append(one)
    return groups


def score(answered: list[Answered]) -> str:
    return f"{sum(a.right for a in answered)} of {len(answered)}"


def table(title: str, groups: dict[str, list[Answered]]) -> str:
    lines = [f"| {title} | Questions | Right |", "|---|---:|---:|"]
    for name, answered in groups.items():
        lines.append(f"| {name} | {len(answered)} | {sum(a.right for a in answered) / len(answered):.0%} |")
    return "\n".join(lines)
