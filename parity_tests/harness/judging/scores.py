"""Scores of answers, from 0 to 1, by the metric of the question.

- exact: the answer is an accepted one, but for white space around it.
- contains: an accepted answer is somewhere in it, whatever the case (as OCRBench scores, arXiv:2305.07895).
- anls: average normalized Levenshtein similarity (Biten et al., "Scene Text Visual Question Answering", ICCV 2019,
  arXiv:1905.13648), of the accepted answer that is closest.
- choice: it names the right option by letter or text.
- iou: intersection over union of the first box it names and the accepted one that fits best.

Knows texts; nothing about models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from qwen3vl_export.runtime.grounding import BOX, find_regions

from ..cases.tasks import LETTERS, Box, Metric, Question

ANLS_THRESHOLD = 0.5  # τ of the paper: larger distances do not count. At τ itself the paper says no, DocVQA's code yes
LETTER = re.compile(r"\(?([A-Z])(?:[.):]+(?:\s|$)|$)")  # "B", "(B)", "B. a ring"; not "A ring"
NAMED = re.compile(r"\b(?:answer|option|choice)(?:\s+is)?\s*:?\s*\(?([A-Z])\b(?!\s+[a-z])", re.IGNORECASE)


def score(answer: str, question: Question) -> float:
    """The score of an answer."""
    return SCORES[question.metric](answer.strip(), question)


def exact(answer: str, question: Question) -> float:
    return float(answer in (accepted.strip() for accepted in question.answers))


def contains(answer: str, question: Question) -> float:
    return float(any(plain(accepted) in plain(answer) for accepted in question.answers))


def anls(answer: str, question: Question) -> float:
    distances = (normalized_distance(plain(answer), plain(accepted)) for accepted in question.answers)
    return max(1 - distance if distance <= ANLS_THRESHOLD else 0.0 for distance in distances)


def choice(answer: str, question: Question) -> float:
    return float(letter_of(answer, question) in question.answers)


def iou(answer: str, question: Question) -> float:
    (size,) = question.sizes
    boxes = [region.pixels(*size) for region in find_regions(answer)[0] if len(region.coordinates) == BOX]
    if not boxes:
        return 0.0
    left, top, right, bottom = boxes[0]
    return max(overlap_of((left, top, right, bottom), accepted) for accepted in question.boxes)


SCORES: Mapping[Metric, Callable[[str, Question], float]] = {
    "exact": exact,
    "contains": contains,
    "anls": anls,
    "choice": choice,
    "iou": iou,
}


def plain(text: str) -> str:
    """In lower case, words one space apart."""
    return " ".join(text.lower().split())


def normalized_distance(first: str, second: str) -> float:
    """Levenshtein's distance, in units of the longer text's length: 0 to 1."""
    return edit_distance(first, second) / max(len(first), len(second), 1)


def edit_distance(first: str, second: str) -> int:
    """The fewest insertions, deletions and substitutions that make one text the other (Wagner and Fischer, 1974)."""
    row = list(range(len(second) + 1))
    for index, letter in enumerate(first, 1):
        before, row[0] = row[0], index
        for column, matching in enumerate(second, 1):
            before, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, before + (letter != matching))
    return row[-1]


def letter_of(answer: str, question: Question) -> str | None:
    """The letter of the option that an answer names: by its letter, by its text, or by the only text in it."""
    options = dict(zip(LETTERS, map(plain, question.choices), strict=False))
    if (match := LETTER.match(answer)) and match[1] in options:
        return match[1]
    said = plain(answer).rstrip(".")
    for letters in (
        [letter for letter, text in options.items() if text == said],
        [match[1].upper() for match in NAMED.finditer(answer) if match[1].upper() in options][-1:],
        [letter for letter, text in options.items() if re.search(rf"\b{re.escape(text)}\b", said)],
    ):
        if len(letters) == 1:
            return letters[0]
    return None


def overlap_of(first: Box, second: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return shared / (areas - shared) if areas > shared else 0.0
