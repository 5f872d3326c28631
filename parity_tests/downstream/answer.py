"""What a downstream runtime made of one prompt, and how far that is from PyTorch given the very same inputs.

PyTorch gets the token ids and the patches the runtime made, so that the logits judge the graphs and how the runtime
drives them; how it prepares its inputs is judged separately. Stages and limits are those of `tolerances.yaml`. Knows no
runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from qwen3vl_export.recipe.blocks import SIZE_STEP
from qwen3vl_export.runtime.arrays import Floats, Ints

from ..harness.cases.matrix import Case, Prompt
from ..harness.diagnosis.diagnose import closest
from ..harness.diagnosis.suspects import DECODER_SUSPECTS
from ..harness.judging.measures import common_prefix, differences, explain_difference, logit_closeness
from ..harness.judging.outcome import Finding, Outcome, judge
from ..harness.sides.bench import Bench
from ..harness.sides.pytorch.inputs import Inputs
from ..harness.sides.pytorch.prompt_reference import PromptReference


@dataclass(frozen=True)
class Answer:
    """One greedy answer, up to and with its end-of-turn token.

    Attributes:
        inputs: what the runtime's tokenizer and image processor made of the prompt.
        tokens: [T].
        logits: [T, V], those each token was chosen from.
        prompt_logits: [1, S, V] of every token of the prompt, or None if the runtime does not return them.
        computed_rows: int64 [T], the rows of logits that each step computed, where the runtime can be watched.
    """

    inputs: Inputs
    tokens: Ints
    logits: Floats
    prompt_logits: Floats | None = None
    computed_rows: Ints | None = None


def text_of(reference: PromptReference, prompt: Prompt) -> str:
    """The chat template's text, one `<|image_pad|>` for each picture: what a user passes to a runtime's processor."""
    content = [*({"type": "image"} for _ in prompt.images), {"type": "text", "text": prompt.ask}]
    messages = [{"role": "user", "content": content}]
    text: str = reference.tokenizer.apply_chat_template(
        messages, chat_template=reference.template, tokenize=False, add_generation_prompt=True
    )
    return text


def is_tiny(image: Image.Image) -> bool:
    """Whether a side is shorter than an image token: each runtime enlarges such pictures in its own way."""
    return min(image.size) < SIZE_STEP


def rounded_half_up(image: Image.Image) -> tuple[int, int] | None:
    """The (h, w) patches of a picture where rounding half up and half to even differ, or None where they agree.

    Only within the pixel budget: beyond it, other rules apply.
    """
    steps = [side / SIZE_STEP for side in (image.height, image.width)]
    up = [math.floor(step + 0.5) for step in steps]
    return None if up == [round(step) for step in steps] else (2 * up[0], 2 * up[1])


def outcomes(bench: Bench, case: Case, answer: Answer) -> list[Outcome]:
    """What a runtime made of a case, judged stage by stage."""
    findings = {"prompt": prompt(bench, case, answer)}
    if answer.prompt_logits is not None:
        findings["prefill"] = prefill(bench, answer)
    findings |= generate(bench, answer)
    return [judge(stage, case.name, finding, bench.profile, 0.0) for stage, finding in findings.items()]


def prompt(bench: Bench, case: Case, answer: Answer) -> Finding:
    """Token ids against transformers', given the runtime's own grids."""
    expected = bench.prompt_reference(bench.prompts(case), answer.inputs.image_grid_thw)[0]
    ids = answer.inputs.input_ids[0].tolist()
    wrong = max(len(ids), len(expected)) - common_prefix(ids, expected)
    visible = bool(answer.inputs.attention_mask.all())
    return Finding({"id_differences": wrong, "left_padded": visible}, compared=len(expected))


def judge_resizing(bench: Bench, case: Case, answer: Answer) -> Outcome:
    """Grids and patches against transformers' image processor, which resizes with another filter."""
    grids, expected = bench.pixel_reference(bench.prompts(case))
    pixels = answer.inputs.pixel_values
    wrong = differences(answer.inputs.image_grid_thw, grids) or 0
    mean = None if wrong else float(np.abs(pixels.astype(np.float64) - expected).mean())
    where = f"grids {answer.inputs.image_grid_thw.tolist()}, transformers has {grids.tolist()}" if wrong else ""
    values = {"grid_differences": wrong, "pixel_mean_abs": mean}
    return judge("resized_elsewhere", case.name, Finding(values, expected.size, where), bench.profile, 0.0)


def prefill(bench: Bench, answer: Answer) -> Finding:
    """Logits of every token of the prompt."""
    assert answer.prompt_logits is not None
    expected = bench.reference.prefill(answer.inputs).logits
    return Finding(logit_closeness(answer.prompt_logits, expected), compared=expected.size)


def generate(bench: Bench, answer: Answer) -> dict[str, Finding]:
    """Stages `decode` and `generate`: logits and tokens of the answer, as far as both sides have the same history."""
    expected = bench.reference.generate(answer.inputs, bench.matrix.new_tokens, stop=True)
    truth = expected.ids[0].tolist()
    tokens = answer.tokens.tolist()
    same = common_prefix(tokens, truth)
    steps = min(same + 1, len(tokens), len(truth))  # at the step where they diverge, both sides have the same history
    divergences = []
    if same < min(len(tokens), len(truth)):
        margin = bench.profile.settings["near_tie_margin"]
        divergences.append(
            explain_difference(
                0, same, tokens[same], answer.logits[same], truth[same], expected.logits[0, same], margin
            )
        )
    unequal_ends = same == min(len(tokens), len(truth)) and len(tokens) != len(truth)
    bad = sum(not difference.near_tie for difference in divergences) + unequal_ends
    where = f"{tokens}, PyTorch has {truth}" if bad else ""
    logits = logit_closeness(answer.logits[:steps], expected.logits[0, :steps])
    return {
        "decode": Finding(logits, compared=steps),
        "generate": Finding({"unexplained_differences": bad}, len(truth), where, divergences),
    }


def diagnosis(bench: Bench, answer: Answer) -> str | None:
    """The known mistake that explains the logits of the prompt, or None."""
    assert answer.prompt_logits is not None
    start = bench.reference.prefill(answer.inputs)
    mask = answer.inputs.attention_mask
    suspects: dict[str, Callable[[], Floats]] = {
        name: partial(suspect, bench.reference, start, mask) for name, suspect in DECODER_SUSPECTS.items()
    }
    return closest(
        bench.reference, answer.prompt_logits, start.logits, suspects, bench.profile.settings["explained_ratio"]
    )


def complaints(judged: Sequence[Outcome]) -> list[str]:
    """One line for each stage that failed."""
    return [outcome.message for outcome in judged if not outcome.passed]
