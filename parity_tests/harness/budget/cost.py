"""The seconds that a check takes: floating-point operations, scores and compared logits, times the rates of a machine.

Arithmetic, and a few constants measured on the tiny model, whose time is mostly that of calls. Nothing depends on a
figure being right but the order of work, a bar of progress, and which cases fit into a budget of time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, replace

from qwen3vl_export.promise import DEQUANTIZED, QUANTIZED_CACHE

from ..checks.weights import STAGES as WEIGHT_STAGES
from ..plan import Check
from .activations import is_read_twice, stored
from .rates import ProductRates, Rates
from .sizes import Call, CaseSizes, ModelSizes

CHECK = 0.01  # seconds of a check, whatever it computes
TORCH_LAYER, ARTIFACT_LAYER = 6e-4, 1e-4  # seconds of a call of one layer, whatever it computes
SMALL_CHUNKS = 2  # times as long as in one call, a prompt that is read in small chunks
WEIGHT = 2e-8  # seconds for dequantizing a weight and comparing it
ANSWER = 0.5  # of the tokens that an answer may have, how many it has


@dataclass(frozen=True)
class Seconds:
    """Of some work, by who does it."""

    artifact: float = 0.0
    pytorch: float = 0.0
    comparing: float = 0.0

    @property
    def total(self) -> float:
        return self.artifact + self.pytorch + self.comparing

    def __add__(self, more: Seconds) -> Seconds:
        return Seconds(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(more), strict=True)))

    def __mul__(self, times: float) -> Seconds:
        return Seconds(*(times * value for value in astuple(self)))


@dataclass(frozen=True)
class CostModel:
    """What the time of a check follows from.

    Attributes:
        streamed: whether PyTorch is.
    """

    model: ModelSizes
    rates: Rates
    streamed: bool = False

    def of(self, check: Check, sizes: Mapping[str, CaseSizes]) -> Seconds:
        """The seconds of a check.

        Args:
            sizes: of cases and questions, by name.
        """
        fixed = Seconds(comparing=CHECK)
        if check.stage in WEIGHT_STAGES:
            return fixed + Seconds(comparing=WEIGHT * self.model.layers * self.model.layer_parameters)
        if check.questions:
            return sum((self.asking(sizes[name]) for name in check.asks), fixed)
        if check.case is None:
            return fixed
        case, stage = sizes[check.case.name], check.stage.removeprefix(DEQUANTIZED)
        dequantized = check.stage != stage
        artifact = self.artifact_stages(dequantized).get(stage, nothing)(case)
        pytorch = self.pytorch_stages(dequantized).get(stage, nothing)(case)
        return fixed + Seconds(artifact, pytorch, self.rates.compared * self.compared_logits(stage, case))

    def asking(self, question: CaseSizes) -> Seconds:
        """Of a question: the artifact answers it, and PyTorch reads the answer, as if both answered alike."""
        question = replace(question, new=round(ANSWER * question.new))
        return Seconds(self.generating(question), self.torch_call(question.joined))

    def artifact_stages(self, dequantized: bool) -> Mapping[str, Callable[[CaseSizes], float]]:
        """Seconds of the artifact in each stage: results are computed where they are first needed."""

        in_float = self.rates.in_float if dequantized else None  # of a copy that the artifact needs for these stages
        rates = in_float or self.rates.artifact

        def read(case: CaseSizes) -> float:
            return self.reading(case.prompt, rates)

        stages: dict[str, Callable[[CaseSizes], float]] = {
            **dict.fromkeys(("decoder", "hidden_states", "answer_logits"), read),
            "decode": lambda case: read(case) + self.steps(case, rates),
        }
        if dequantized and in_float is None:
            return {} if self.streamed else stages
        stages |= {
            "vision": lambda case: self.encoding(case, rates),
            "prefill": read,
            QUANTIZED_CACHE: read,
            **dict.fromkeys(("embedding", "score"), lambda case: self.encoding(case, rates) + read(case)),
            "teacher_forced": lambda case: self.reading(case.text, rates),
            "chunked": lambda case: (1 + SMALL_CHUNKS) * read(case),
        }
        return stages if self.streamed else {**stages, "generate": stages["decode"]}

    def pytorch_stages(self, dequantized: bool) -> Mapping[str, Callable[[CaseSizes], float]]:
        """Seconds of PyTorch in each stage, as `artifact_stages`."""
        first, text = ("embeddings", lambda case: 0.0) if dequantized else ("positions", self.torch_text)
        tower = {"vision": lambda case: self.torch_call(case.encoder)}
        if not dequantized:
            tower |= dict.fromkeys(("embedding", "score"), self.torch_prompt)
        if self.streamed:
            return {**tower, first: lambda case: self.torch_call(replace(case.joined, frames=()))}
        return {
            **tower,
            first: lambda case: self.torch_call(case.prompt),
            "teacher_forced": text,
            "decode": self.torch_generating,
        }

    def torch_prompt(self, case: CaseSizes) -> float:
        return self.torch_call(case.prompt) if is_read_twice(self.model, case) else 0.0

    def torch_text(self, case: CaseSizes) -> float:
        return self.torch_call(case.text)

    def encoding(self, case: CaseSizes, rates: ProductRates) -> float:
        calls = ARTIFACT_LAYER * self.model.blocks if case.frames else 0
        return rates.many * tower_operations(self.model, case.encoder) + calls

    def reading(self, call: Call, rates: ProductRates) -> float:
        return rates.many * decoder_operations(self.model, call) + ARTIFACT_LAYER * self.model.layers

    def steps(self, case: CaseSizes, rates: ProductRates) -> float:
        one = step_operations(self.model) * case.rows * rates.single + ARTIFACT_LAYER * self.model.layers
        return case.new * one

    def generating(self, case: CaseSizes) -> float:
        rates = self.rates.artifact
        return (
            self.encoding(case, rates) + self.reading(Call(case.rows, case.tokens, 1), rates) + self.steps(case, rates)
        )

    def torch_call(self, call: Call) -> float:
        model = self.model
        operations = tower_operations(model, call) + decoder_operations(model, call)
        scores = model.layers * stored(call.rows * model.heads * call.tokens**2)
        scores += model.blocks * sum(stored(model.tower_heads * frame**2) for frame in call.frames)
        layers = (model.layers if call.tokens else 0) + (model.blocks if call.frames else 0)
        return self.rates.pytorch.many * operations + self.rates.score * scores + TORCH_LAYER * layers

    def torch_generating(self, case: CaseSizes) -> float:
        step = step_operations(self.model) * case.rows * self.rates.pytorch.single + TORCH_LAYER * self.model.layers
        return self.torch_call(Call(case.rows, case.tokens, 1, case.frames)) + case.new * step

    def compared_logits(self, stage: str, case: CaseSizes) -> int:
        stages = ("decoder", "prefill", "hidden_states", "answer_logits")
        tokens = dict.fromkeys(stages, case.compared) | {"teacher_forced": case.forced, "decode": case.new}
        return case.rows * tokens.get(stage, 0) * self.model.output


def nothing(case: CaseSizes) -> float:
    return 0.0


def tower_operations(model: ModelSizes, call: Call) -> int:
    """Floating-point operations of a call in the vision tower."""
    attention = 4 * model.tower_hidden * sum(patches**2 for patches in call.frames)
    return model.blocks * (2 * model.block_parameters * call.patches + attention)


def decoder_operations(model: ModelSizes, call: Call) -> int:
    """Floating-point operations of a call in the decoder and its head."""
    attention = 4 * model.heads * model.head_dim * call.tokens**2
    layer = 2 * model.layer_parameters * call.tokens + attention
    return call.rows * (model.layers * layer + 2 * model.hidden * model.output * call.logits)


def step_operations(model: ModelSizes) -> int:
    """Floating-point operations of a row's step of decoding."""
    return 2 * (model.layers * model.layer_parameters + model.hidden * model.output)
