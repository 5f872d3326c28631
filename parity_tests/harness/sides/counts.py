"""What is remembered while checks run: the time the artifact's generation took, and answers to questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from qwen3vl_export.evidence import Difference, Speed
from qwen3vl_export.evidence.tasks import AnsweredQuestion


@dataclass
class Clock:
    """How long the runtime's own generation took: reading prompts (up to the first token), and the tokens after."""

    answers: int = 0
    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    new_tokens: int = 0
    new_seconds: float = 0.0

    def add(self, prompt_tokens: int, prompt_seconds: float, new_tokens: int, new_seconds: float) -> None:
        self.answers += 1
        self.prompt_tokens += prompt_tokens
        self.prompt_seconds += prompt_seconds
        self.new_tokens += new_tokens
        self.new_seconds += new_seconds

    def since(self, earlier: Clock) -> Clock:
        """What has been added after `earlier`, a copy of this clock."""
        return Clock(**{name: value - getattr(earlier, name) for name, value in asdict(self).items()})

    def speed(self, threads: int | None) -> Speed | None:
        """For the evidence; None if nothing was generated."""
        if not self.answers:
            return None
        seconds = {name: round(getattr(self, name), 3) for name in ("prompt_seconds", "new_seconds")}
        return Speed(threads, **{**asdict(self), **seconds})


@dataclass(frozen=True)
class Asked:
    """A question that both sides have answered, and the steps at which they would choose different tokens."""

    answered: AnsweredQuestion
    differences: Sequence[Difference]
