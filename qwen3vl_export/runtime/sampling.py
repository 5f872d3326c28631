"""Logits to the next token: greedy, or sampled with temperature, top-k, top-p, min-p and two penalties.

The repetition penalty is that of transformers' `RepetitionPenaltyLogitsProcessor`. The presence penalty, which
transformers does not have, is the OpenAI API's as vLLM computes it: after the repetition penalty, over generated tokens
only. What follows is in `warpers`. Random numbers come from numpy, so a seed gives the same text on every machine that
computes the same logits, though not the text that torch would sample.

Knows numbers; nothing about graphs or text.
"""

from __future__ import annotations

import secrets
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ..errors import ArtifactError, InputError
from ..json_form import from_settings
from .arrays import Floats, Ints
from .warpers import softmax, warp

MAX_PRESENCE_PENALTY = 2  # the range of the OpenAI API
FACTORS = (1e-6, 1e6)  # of logits: within them float32 holds the products
DRAWING = ("temperature", "top_k", "top_p", "min_p")  # settings without effect on greedy answers
PENALTIES = ("repetition_penalty", "presence_penalty")
NAMES = (*DRAWING, *PENALTIES, "seed")


@dataclass(frozen=True)
class Sampling:
    """Sampling settings; the default is plain greedy decoding. The penalties apply to greedy decoding too.

    Raises:
        InputError: a value out of range.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0  # draw from this many of the likeliest tokens; 0 is all
    top_p: float = 1.0  # draw from the likeliest tokens that together have this probability
    min_p: float = 0.0  # draw from tokens at least this fraction as likely as the likeliest
    repetition_penalty: float = 1.0  # divides the logits of tokens in prompt or answer; 1 is none
    presence_penalty: float = 0.0  # subtracted from the logits of tokens in the answer; 0 is none
    seed: int | None = None  # None means a new seed each time

    def __post_init__(self) -> None:
        low, high = FACTORS
        if self.do_sample and not low <= self.temperature <= high:
            advice = f"Use a number from {low:g} to {high:.0f}, or 0 for greedy answers"
            raise InputError(f"temperature is {self.temperature}", advice)
        if self.top_k < 0:
            raise InputError(f"top_k is {self.top_k}", "Use 0 for all tokens, or a number above 0")
        if not 0 <= self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}", "Use a number between 0 and 1")
        if not 0 <= self.min_p <= 1:
            raise InputError(f"min_p is {self.min_p}", "Use a number between 0 and 1; 0 keeps every token")
        if not low <= self.repetition_penalty <= high:
            advice = f"Use a number from {low:g} to {high:.0f}; 1 is none"
            raise InputError(f"repetition_penalty is {self.repetition_penalty}", advice)
        if not -MAX_PRESENCE_PENALTY <= self.presence_penalty <= MAX_PRESENCE_PENALTY:
            raise InputError(f"presence_penalty is {self.presence_penalty}", "Use a number from -2 to 2; 0 is none")
        if self.seed is not None and self.seed < 0:
            raise InputError(f"seed is {self.seed}", "Use 0 or above")

    def __str__(self) -> str:
        """`temperature 0.7, top_k 20, top_p 0.8, seed 5`, or `greedy`: whatever has an effect."""
        names = NAMES if self.do_sample else PENALTIES
        values = {name: getattr(self, name) for name in names}
        shown = [
            f"{name} {value}" for name, value in values.items() if name == DRAWING[0] or value != getattr(GREEDY, name)
        ]
        return ", ".join(shown if self.do_sample else ["greedy", *shown])


GREEDY = Sampling()


@dataclass(frozen=True)
class StoredSettings:
    """The form of a `generation_config.json`; null is as if it were missing."""

    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    eos_token_id: int | tuple[int, ...] | None = None


def from_generation_config(config: Mapping[str, Any]) -> Sampling:
    """The settings of a `generation_config.json`; the defaults are those of transformers' `GenerationConfig`.

    Raises:
        InputError: a value of another type, or out of range.
    """
    stored = read_stored(config)
    values = {field.name: getattr(stored, field.name) for field in fields(stored) if field.name != "eos_token_id"}
    given = {name: value for name, value in values.items() if value is not None}
    return Sampling(**{"top_k": 50, **given})


def read_stored(config: Mapping[str, Any]) -> StoredSettings:
    """The settings as they are stored.

    Raises:
        InputError: a value of another type.
    """
    try:
        return from_settings(StoredSettings, config)
    except ValueError as error:
        raise InputError(str(error), "Take it from the published checkpoint") from None


def stop_ids(config: Mapping[str, Any]) -> frozenset[int] | None:
    """The ids of a `generation_config.json` that end an answer; None if it names none.

    Raises:
        InputError: they are not integers.
    """
    ids = read_stored(config).eos_token_id
    return None if ids is None else frozenset({ids} if isinstance(ids, int) else ids)


def override(
    base: Sampling,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    presence_penalty: float | None = None,
    seed: int | None = None,
) -> Sampling:
    """`base` with the settings that are not None. A temperature also switches sampling: 0 is greedy."""
    changes: dict[str, Any] = {
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "seed": seed,
    }
    if temperature is not None:
        changes |= {"do_sample": temperature != 0, "temperature": temperature or 1.0}
    return replace(base, **{name: value for name, value in changes.items() if value is not None})


def resolve(base: Sampling, settings: Mapping[str, Any]) -> Sampling:
    """`base` with those of the settings that concern sampling; where tokens are drawn, always with a seed.

    So an answer can be repeated.
    """
    sampling = override(base, **{name: settings[name] for name in NAMES if name in settings})
    return (
        replace(sampling, seed=secrets.randbelow(2**32)) if sampling.do_sample and sampling.seed is None else sampling
    )


class Chooser:
    """Chooses one token for each row of a batch. Every row has its own random generator, so rows are independent."""

    def __init__(self, sampling: Sampling, rows: int) -> None:
        self.sampling = sampling
        seeds = np.random.SeedSequence(sampling.seed).spawn(rows)
        self._generators = [np.random.default_rng(seed) for seed in seeds]

    def __call__(self, logits: Floats, seen: Sequence[Ints], step: int) -> Ints:
        """Token ids int64 [B].

        Args:
            logits: [B, V] of the last token of each row.
            seen: for each row the int64 ids so far, prompt included, padding excluded: for the repetition penalty.
            step: how many of them were generated: for the presence penalty.

        Raises:
            ArtifactError: logits that are NaN or infinite.
        """
        highest = logits.max(axis=-1)  # NaN if any logit is
        if not np.isfinite(highest).all():
            kind = "NaN" if np.isnan(highest).any() else "infinite"
            raise ArtifactError(
                f"the decoder's logits are not numbers ({kind}) at step {step}", "Use an artifact of higher precision"
            )
        chosen = [
            choose_token(row, ids, self.sampling, generator, step)
            for row, ids, generator in zip(logits, seen, self._generators, strict=True)
        ]
        return np.array(chosen, np.int64)


def choose_token(
    logits: Floats, seen: Ints, sampling: Sampling, generator: np.random.Generator, generated: int = 0
) -> int:
    """One token id from the logits [V] of one row; the last `generated` ids of `seen` are its answer so far."""
    scores = penalize_repetition(logits, seen, sampling.repetition_penalty)
    scores = penalize_presence(scores, seen[len(seen) - generated :], sampling.presence_penalty)
    if not sampling.do_sample:
        return int(scores.argmax())
    ids, scores = warp(scores, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
    cumulative = softmax(scores).astype(np.float64).cumsum()
    total = cumulative[-1]
    return int(ids[bisect_right(cumulative, generator.random(), key=lambda part: part / total)])


def penalize_repetition(logits: Floats, seen: Ints, penalty: float) -> Floats:
    """Logits [V] with those of the ids in `seen` lowered: positive ones divided by the penalty, negative multiplied."""
    if penalty == 1:
        return logits
    scores = logits.astype(np.float32)
    values = scores[seen]
    scores[seen] = np.where(values < 0, values * penalty, values / penalty)
    return scores


def penalize_presence(logits: Floats, answer: Ints, penalty: float) -> Floats:
    """Logits [V] minus the penalty for ids in `answer`, once however often they occur."""
    if penalty == 0 or not len(answer):
        return logits
    scores = logits.astype(np.float32)
    scores[answer] -= np.float32(penalty)  # fancy indexing: an id that occurs twice is lowered once
    return scores
