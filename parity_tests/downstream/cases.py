"""Which cases of the matrix a downstream runtime gets: one prompt, pictures but no video.

Pictures that are files are left out: how to decode a file is up to the runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from PIL import Image

from ..harness.cases.matrix import Case, Prompt, load_matrix


def one_prompt_cases(max_images: int) -> list[Case]:
    """Cases of the standard matrix with one prompt of at most `max_images` pictures."""
    return [case for case in all_one_prompt_cases() if len(case.images) <= max_images]


@cache
def all_one_prompt_cases() -> Sequence[Case]:
    """Those with any number of pictures; what is a file is seen when it is drawn."""
    matrix = load_matrix()
    cases = [case for case in matrix.of_tier("standard") if case.ask and not case.has_video]
    return [case for case in cases if not holds_files(matrix.draw(case)[0])]


def holds_files(prompt: Prompt) -> bool:
    return any(isinstance(image, bytes) for image in prompt.images)


def pictures_of(prompt: Prompt) -> list[Image.Image]:
    """The pictures of such a case's prompt."""
    return [image for image in prompt.images if isinstance(image, Image.Image)]


def sizes(cases: Sequence[Case]) -> set[str]:
    """The different picture sizes of the cases, `150x211`."""
    return {picture.split()[1] for case in cases for picture in case.images}
