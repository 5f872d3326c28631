"""Times prompt lookup decoding beside plain decoding: the tiny model's answers, and a simulation at an artifact's cost.

    python scripts/bench_speculation.py answers artifacts/tiny
    python scripts/bench_speculation.py simulate ARTIFACT --tokenizer tokenizer.json --out docs/bench/speculation.json

`answers` generates with both in turn and compares time and tokens. `simulate` times calls of 1 to 16 tokens of an
artifact, whose weights may be random, and replays on them the drafts that `speculation` makes when an answer is one of
the texts in `speculation_texts.py`, tokenized by a published tokenizer: a call costs what it was measured to.
"""

from __future__ import annotations

import json
import platform
import random
import statistics
import sys
import time
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
import typer
from bench_vision import cpu_name
from rich.console import Console
from rich.table import Table
from speculation_texts import KINDS

sys.path.insert(0, str(Path(__file__).parents[1]))

from parity_tests.harness.cases.exam import ANSWER_TOKENS, exam_groups
from parity_tests.harness.cases.picture_kinds import PHOTOGRAPH
from qwen3vl_export.artifact import open_artifact
from qwen3vl_export.contract import DECODER
from qwen3vl_export.runtime import GREEDY, Image, Prepared, Qwen3VL, Sampling
from qwen3vl_export.runtime.decoder import decode, empty_cache
from qwen3vl_export.runtime.prompts.messages import as_messages
from qwen3vl_export.runtime.session import Sessions
from qwen3vl_export.runtime.speculation import LONGEST_DRAFT, Cost, PromptLookup, cost_of

ROUNDS = 7
CHUNK = 128  # tokens of a call that reads the prompt
PROMPT = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n"
SAMPLED = Sampling(True, 0.7, top_k=20, top_p=0.8, seed=1)
console = Console(highlight=False, soft_wrap=True)
app = typer.Typer(add_completion=False)


# The tiny model.


@app.command()
def answers(artifacts: list[Path], per_size: int = 2, repeats: int = 3, threads: int = 1) -> None:
    """Answers with and without prompt lookup: seconds after the first token, and tokens that differ."""
    for path in artifacts:
        model = Qwen3VL.load(path, threads=threads, check=False)
        table = Table(
            "answers", "tokens", "a call", "ms a token", "with prompt lookup", "times", "differ", title=str(path)
        )
        for kind, asked in questions_of(model, per_size).items():
            pairs = [compare(model, *given, repeats) for given in asked]
            plain, ahead, tokens, calls, different = (sum(column) for column in zip(*pairs, strict=True))
            each = [f"{seconds / tokens * 1e3:.2f}" for seconds in (plain, ahead)]
            ratios = [f"{tokens / calls:.2f}", *each, f"{plain / ahead:.2f}"]
            table.add_row(kind, f"{tokens:,}", *ratios, f"{different} of {len(pairs)}")
        console.print(table)


def questions_of(model: Qwen3VL, per_size: int) -> dict[str, list[tuple[Prepared, int, Sampling, bool]]]:
    """Prompts by kind, each with a limit of tokens, how to choose them, and whether the model ends the answer."""
    exam = [question for group in exam_groups(per_size).values() for question in group]
    contents = [[*map(Image, question.images), question.ask] for question in exam]
    shown = [model.prepare([as_messages(content)]) for content in contents]
    again = []
    for question, content in zip(exam, contents, strict=True):
        turn = {"role": "user", "content": content}
        said = {"role": "assistant", "content": question.answers[0]}
        again.append(model.prepare([[turn, said, {"role": "user", "content": question.ask}]]))
    long = [prepared for question, prepared in zip(exam, shown, strict=True) if question.kind == "describe"]
    photograph = model.prepare([as_messages([Image(PHOTOGRAPH), "What is this?"])])
    return {
        "exam": [(prepared, ANSWER_TOKENS, GREEDY, True) for prepared in shown],
        "descriptions": [(prepared, ANSWER_TOKENS, GREEDY, True) for prepared in long],
        "the same question again": [(prepared, ANSWER_TOKENS, GREEDY, True) for prepared in again],
        "long answers": [(prepared, 512, GREEDY, False) for prepared in [*long[:4], photograph]],
        "long answers, drawn": [(prepared, 512, SAMPLED, False) for prepared in [*long[:4], photograph]],
    }


def compare(
    model: Qwen3VL, prepared: Prepared, limit: int, sampling: Sampling, ends: bool, repeats: int
) -> tuple[float, float, int, int, bool]:
    """Median seconds without and with prompt lookup, tokens, calls of the second, and whether the tokens differ."""
    runs: dict[bool, list[tuple[list[int], float, int]]] = {False: [], True: []}
    for _ in range(repeats):
        for lookup, results in runs.items():
            results.append(generate(model, prepared, limit, sampling, ends, lookup))
    seconds = [statistics.median(run[1] for run in results) for results in runs.values()]
    (plain, *_), (ahead, _, calls) = runs[False][0], runs[True][0]
    return *seconds, len(plain), calls, plain != ahead  # type: ignore[return-value]


def generate(
    model: Qwen3VL, prepared: Prepared, limit: int, sampling: Sampling, ends: bool, lookup: bool
) -> tuple[list[int], float, int]:
    """The tokens, the seconds after the first of them, and the calls."""
    stop_ids = None if ends else frozenset[int]()
    tokens, bases = [], []
    for step in model.generate_steps(prepared, limit, sampling, stop_ids=stop_ids, prompt_lookup=lookup):
        if not tokens:
            start = time.perf_counter()
        tokens.append(int(step.tokens[0]))
        bases.append(step.logits.base)  # the steps of a call share its logits
    seconds = time.perf_counter() - start
    return tokens, seconds, sum(left is not right for left, right in pairwise(bases)) + 1


# The simulation.


@app.command()
def simulate(
    artifacts: list[Path],
    tokenizer: Annotated[Path, typer.Option(help="A published tokenizer.json.")],
    context: Annotated[int, typer.Option(help="Tokens before the calls that are timed.")] = 512,
    threads: Annotated[int, typer.Option(help="One is timed in CPU seconds, for a machine that is busy besides.")] = 2,
    seeds: Annotated[int, typer.Option(help="Texts of each kind.")] = 4,
    out: Annotated[Path | None, typer.Option(help="Write the figures here as JSON.")] = None,
) -> None:
    """Replay the drafts of texts at what calls of artifacts cost."""
    figures: dict[str, Any] = {"about": describe(context, threads, seeds), "calls": {}, "texts": {}}
    for path in artifacts:
        sessions = Sessions(open_artifact(path, check=False), threads)
        name, plan = path.name, sessions.artifact.manifest.recipe["quantization"][DECODER]
        figures["calls"][name] = seconds = time_calls(sessions, context, threads)
        for kind in KINDS:
            traces = [trace_of(kind, seed, tokenizer, cost_of(plan)) for seed in range(seeds)]
            figures["texts"].setdefault(kind, {})[name] = replay(traces, seconds)
    for table in tables(figures):
        console.print(table)
    if out is not None:
        out.write_text(json.dumps(figures, indent=1) + "\n")


Trace = tuple[int, list[int]]  # tokens after the first, and the drafted tokens of each call


def trace_of(kind: str, seed: int, tokenizer: Path, cost: Cost) -> Trace:
    """The calls in which a model answers with a text."""
    question, answer = KINDS[kind](random.Random(f"{kind}-{seed}"))
    prompt, ids = (encoder(tokenizer).encode(text).ids for text in (PROMPT.format(question), answer))
    lookup, drafted = PromptLookup(prompt, (), cost), []
    for index, token in enumerate(ids[:-1]):
        if not lookup.push(token):
            drafted.append(len(lookup.draft(len(ids) - index - 2)))
    return len(ids) - 1, drafted


@cache
def encoder(tokenizer: Path) -> Any:
    """The `tokenizers.Tokenizer` of a file."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(tokenizer))


def time_calls(sessions: Sessions, context: int, threads: int) -> dict[int, float]:
    """Median seconds of a call with each number of tokens, after `context` tokens; sizes take turns."""
    clock = time.process_time if threads == 1 else time.perf_counter
    generator = np.random.default_rng(0)
    cache = empty_cache(sessions, 1, context + LONGEST_DRAFT + 1)

    def read(count: int) -> float:
        length = cache.length
        rows = generator.standard_normal((1, count, sessions.facts.wide_size), np.float32)
        positions = np.tile(np.arange(length, length + count), (3, 1, 1))
        start = clock()
        decode(sessions, rows, np.ones((1, length + count), np.int64), positions, cache, count)
        return clock() - start

    for start in range(0, context, CHUNK):
        read(min(CHUNK, context - start))
    seconds: dict[int, list[float]] = {count: [] for count in range(1, LONGEST_DRAFT + 2)}
    for number in range(ROUNDS + 1):
        for count, times in seconds.items():
            elapsed = read(count)
            cache.truncate(context)
            if number:  # the first round warms up
                times.append(elapsed)
    return {count: statistics.median(times) for count, times in seconds.items()}


def replay(traces: list[Trace], seconds: dict[int, float]) -> dict[str, float]:
    """Tokens, calls, and how many times as fast texts are as without drafts."""
    tokens, calls = sum(tokens for tokens, _ in traces), [drafted for _, calls in traces for drafted in calls]
    ahead = sum(seconds[1 + drafted] for drafted in calls)
    return {"tokens": tokens, "calls": len(calls), "times_as_fast": tokens * seconds[1] / ahead}


def describe(context: int, threads: int, seeds: int) -> dict[str, Any]:
    """The hardware, the versions and what is measured."""
    of = {"context": context, "threads": threads, "texts": seeds, "rounds": ROUNDS}
    return {**of, "cpu": cpu_name(), "python": platform.python_version(), "onnxruntime": onnxruntime.__version__}


def tables(figures: dict[str, Any]) -> list[Table]:
    """The figures for people: what calls cost in calls with one token, and what drafts gain by text."""
    costs = Table("call of", *map(str, range(1, LONGEST_DRAFT + 2)))
    for name, seconds in figures["calls"].items():
        costs.add_row(name, *(f"{value / seconds[1]:.2f}" for value in seconds.values()))
    gains = Table("text", "tokens", *(f"{name}: tokens a call, times as fast" for name in figures["calls"]))
    for kind, of in figures["texts"].items():
        cells = [f"{each['tokens'] / each['calls']:.2f}, {each['times_as_fast']:.2f}" for each in of.values()]
        gains.add_row(kind, f"{next(iter(of.values()))['tokens']:,}", *cells)
    return [costs, gains]


if __name__ == "__main__":
    app()
