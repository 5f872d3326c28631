"""Prompt lookup decoding: speculation without a second model, by copying what followed the same tokens before.

An answer that quotes, or has the same structure again and again (JSON with boxes, tables), repeats tokens of its prompt
or of itself. A draft of them is read in one call, which gives the logits after each; then every token is chosen from
its own logits as without a draft, and the draft counts as far as it agrees (Saxena, "Prompt Lookup Decoding", 2023;
transformers' `prompt_lookup_num_tokens`). The choice is the sampler's alone, so its result does not depend on drafts.

Two sources of a draft are followed: where the last tokens occurred before, the longest of `SIZES` first, and the place
that the answer has been running along, which goes on after a token that differs, as the rows of a table do. For both it
is recorded with each token, drafted or not, whether they predicted it. So a draft's odds are known before it costs
anything, and where nothing is ever predicted nothing is drafted. A draft has the length at which the tokens expected
from its call are most for what the call costs, and what drafts cost beyond what they saved has a limit.

Knows token ids; nothing about graphs, logits or text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from operator import eq
from typing import Any

SIZES = (4, 2)  # tokens of an n-gram
LONGEST_DRAFT = 15
LEAST_GAIN = 1.05  # expected tokens for the cost of one, below which nothing is drafted
LONGEST_MATCH = 8  # equal tokens before a source; more do not tell more
ALIGNMENT = 16  # tokens before a source that are compared to see how well the answer runs along it
MEMORY = 0.98  # the weight of a prediction beside the next one
MOST_LOSS = 0.02  # of the time without drafts that they may cost in all, if each costs what `Cost` says
CREDIT = 1.0  # calls that they may cost besides, so that the first need not wait


@dataclass(frozen=True)
class Cost:
    """How much more a call with a draft takes than one with a single token, in times of one."""

    once: float
    each: float  # for each drafted token

    def of(self, drafted: int) -> float:
        return self.once + self.each * drafted if drafted else 0.0


# By how onnxruntime multiplies on a CPU, as `scripts/bench_speculation.py` measures. Answers do not measure it, since
# drafts that depend on the clock would make rounding depend on it.
FLOAT = Cost(0.1, 0.09)  # weights are read once for all tokens, which takes longest
EIGHT_BITS = Cost(0.0, 0.25)  # activations in blocks of 8 bits: computing takes as long as reading
UNPACKED = Cost(1.0, 0.16)  # weights of 4 bits, which are unpacked in calls with several tokens


def cost_of(plan: Mapping[str, Any]) -> Cost:
    """The cost of drafts for a decoder, from what a manifest's recipe says under `quantization` of it."""
    if plan.get("accuracy_level") == 4:
        return EIGHT_BITS
    return UNPACKED if plan.get("method") in ("int4", "source") else FLOAT


class Odds:
    """How often a prediction was right lately; without any, as often as `prior`, which counts as one prediction."""

    __slots__ = ("hits", "tries")

    def __init__(self) -> None:
        self.hits = self.tries = 0.0

    def record(self, hit: bool) -> None:
        self.hits = self.hits * MEMORY + hit
        self.tries = self.tries * MEMORY + 1

    def estimate(self, prior: float) -> float:
        return (self.hits + prior) / (self.tries + 1)


class PromptLookup:
    """The drafts of one answer. Deterministic, so that an answer that is repeated is computed by the same calls.

    A token costs 10 to 20 microseconds, however long prompt and answer are.

    Args:
        ids: of the prompt.
        barred: ids that no draft contains: those that end an answer, since nothing after them counts, and those that
            are read in another way than text.
        cost: of the decoder's calls.
    """

    def __init__(self, ids: Iterable[int], barred: Collection[int], cost: Cost) -> None:
        self._ids = list(ids)
        self._next: dict[tuple[int, ...], int] = {}  # the index of the token after the latest occurrence of an n-gram
        for size in SIZES:
            grams = zip(*(self._ids[start:] for start in range(size)), strict=False)
            self._next.update(zip(grams, range(size, len(self._ids)), strict=False))
        self._barred = frozenset(barred)
        self._cost = cost
        self._matches = [Odds() for _ in range(LONGEST_MATCH + 1)]  # by the number of equal tokens before a source
        self._by_match = [0.0] * (LONGEST_MATCH + 1)  # their estimates; each is the prior of the next
        self._by_token: dict[tuple[int, bool], Odds] = {}  # by the predicted token, and whether any token before equals
        self._aligned: int | None = None
        self._draft: list[int] = []  # what is left of the last one
        self._budget = CREDIT
        self._sources = self._find_sources()

    def push(self, token: int) -> bool:
        """Record the token that was chosen; whether the last draft has it in this place."""
        ids = self._ids
        followed: tuple[bool, int, int] | None = None
        for source, match in self._sources:
            predicted = ids[source]
            hit = predicted == token
            self._matches[match].record(hit)
            self._by_token.setdefault((predicted, match > 0), Odds()).record(hit)
            followed = max(followed or (False, -1, 0), (hit, self._alignment(source), source))
        self._update_estimates()
        self._aligned = None if followed is None else followed[2] + 1
        self._append(token)
        self._sources = self._find_sources()
        accepted = bool(self._draft) and self._draft[0] == token
        self._draft = self._draft[1:] if accepted else []
        self._budget += MOST_LOSS + accepted
        return accepted

    def draft(self, limit: int) -> list[int]:
        """At most `limit` ids that probably come next; none where they would not pay."""
        best: tuple[float, list[int]] = (LEAST_GAIN, [])
        limit = min(limit, LONGEST_DRAFT, int((self._budget - self._cost.once) / self._cost.each))
        for source, match in self._sources if limit > 0 else ():
            expected = odds = 1.0
            tokens = list(islice(cycle(self._ids[source : source + limit]), limit))  # what goes on at its end repeats
            for length, token in enumerate(tokens, 1):
                odds *= self._odds(token, match)
                if odds <= self._cost.each or token in self._barred:
                    break  # from here on each token costs more than it brings, or cannot be read ahead
                expected += odds
                match = min(match + 1, LONGEST_MATCH)
                if (gain := expected / (1 + self._cost.of(length))) > best[0]:
                    best = gain, tokens[:length]
        self._draft = best[1]
        self._budget -= self._cost.of(len(self._draft))
        return self._draft

    def _append(self, token: int) -> None:
        ids = self._ids
        for size in SIZES:
            if len(ids) >= size:
                self._next[tuple(ids[-size:])] = len(ids)
        ids.append(token)

    def _find_sources(self) -> list[tuple[int, int]]:
        """Indices of tokens that may come next, each with the number of tokens before it that equal the last ones."""
        indices = (self._next.get(tuple(self._ids[-size:])) for size in SIZES)
        latest = next((index for index in indices if index is not None), None)
        return [(source, self._match(source)) for source in {self._aligned: 0, latest: 0} if source is not None]

    def _match(self, source: int) -> int:
        ids, length = self._ids, 0
        most = min(source, LONGEST_MATCH)
        while length < most and ids[source - 1 - length] == ids[-1 - length]:
            length += 1
        return length

    def _alignment(self, source: int) -> int:
        """How many of the tokens before a source equal those before the next token, each with that in its place."""
        width = min(source, ALIGNMENT)
        return sum(map(eq, self._ids[source - width : source], self._ids[len(self._ids) - width :]))

    def _odds(self, token: int, match: int) -> float:
        by_match = self._by_match[match]
        by_token = self._by_token.get((token, match > 0))
        return by_match if by_token is None else by_token.estimate(by_match)

    def _update_estimates(self) -> None:
        estimate = 0.0
        for match, odds in enumerate(self._matches):
            estimate = self._by_match[match] = odds.estimate(estimate)
