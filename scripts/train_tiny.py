"""Trains the tiny checkpoint from nothing and writes it as a stock transformers folder.

    python -m scripts.train_tiny --out DIR --steps N [--seed N] [--resume]    about an hour on two free CPU cores
    python -m scripts.train_tiny --evaluate recipes/checkpoints/tiny          accuracy on the held-out exam, by size

Run it with OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 where cores are shared, because spinning threads slow each other
down several times, and with MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000, which saves a tenth on Linux.
Needs torch, transformers and scikit-image. Batch n and the learning rate at step n follow from the seed, n and --steps:
an interrupted training continues with what would have come next (`--resume`). A resumed training may be given other
--steps; what remains is then spread over the new number.
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
from collections import defaultdict
from multiprocessing.queues import Queue
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn

from scripts.tiny_training.batches import Batch, stream
from scripts.tiny_training.config import build_config, build_model
from scripts.tiny_training.evaluate import evaluate
from scripts.tiny_training.export import export
from scripts.tiny_training.forward import Output, forward, right_answers, use_text_attention
from scripts.tiny_training.optimize import (
    MAX_GRADIENT_NORM,
    answer_loss,
    auxiliary_loss,
    auxiliary_weight,
    build_heads,
    build_optimizers,
    learning_rate,
    set_learning_rate,
)
from scripts.tiny_training.parallel import PROCESSES, average_gradients, join
from scripts.tiny_training.tokenizer import save_tokenizer, train_tokenizer

STATE, TOKENIZER = "state.pt", "tokenizer.json"
LOG_EVERY, SAVE_EVERY, EXPORT_EVERY = 50, 250, 1000


class Training:
    """The state that a resumed training needs, and where it is kept."""

    def __init__(self, out: Path, seed: int, steps: int, resume: bool) -> None:
        self.out, self.seed, self.steps, self.step = out, seed, steps, 0
        self.state_file = out / STATE
        self.tokenizer = Tokenizer.from_file(str(out / TOKENIZER))
        self.model = build_model(build_config(self.tokenizer), seed)
        use_text_attention(self.model)
        self.heads = build_heads(self.model)
        self.optimizers = build_optimizers(self.model, self.heads)
        if resume:
            self.load()

    def save(self) -> None:
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "random": torch.get_rng_state(),
        }
        partial = self.state_file.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.state_file)

    def load(self) -> None:
        state = torch.load(self.state_file, weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        torch.set_rng_state(state["random"])

    def learn(self, batch: Batch) -> tuple[float, float, Output]:
        """One step with this process's share of a batch; returns the answer loss, the auxiliary loss and the output."""
        set_learning_rate(self.optimizers, learning_rate(self.step, self.steps))
        weight = auxiliary_weight(self.step / self.steps)
        auxiliary = torch.zeros(())
        with torch.autocast("cpu", torch.bfloat16):
            output = forward(self.model, batch)
            if output.visual and weight > 0:
                auxiliary = auxiliary_loss(self.heads, output.visual, torch.from_numpy(batch.token_labels))
        loss = answer_loss(output)
        (loss + weight * auxiliary).backward()
        average_gradients([*self.model.parameters(), *self.heads.parameters()])
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.item(), auxiliary.item(), output


class Log:
    """Running means since the last line, one JSON object per line; of the first process's share of the batches."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.clear()

    def clear(self) -> None:
        self.losses: list[float] = []
        self.auxiliary: list[float] = []
        self.right: dict[str, list[bool]] = defaultdict(list)
        self.since = time.monotonic()

    def add(self, batch: Batch, loss: float, auxiliary: float, output: Output) -> None:
        self.losses.append(loss)
        self.auxiliary.append(auxiliary)
        for kind, right in zip(batch.kinds, right_answers(output).tolist(), strict=True):
            self.right[kind].append(right)

    def write(self, step: int, rate: float) -> None:
        now = time.monotonic()
        line = {
            "step": step,
            "minutes": round((now - self.started) / 60, 1),
            "steps_per_second": round(len(self.losses) / (now - self.since), 2),
            "learning_rate": round(rate, 6),
            "loss": round(mean(self.losses), 4),
            "auxiliary": round(mean(self.auxiliary), 3),
            "right": {kind: round(mean(self.right[kind]), 2) for kind in sorted(self.right)},
        }
        print(json.dumps(line), flush=True)
        self.clear()


def mean(values: list[float] | list[bool]) -> float:
    return sum(values) / len(values)


def train(out: Path, seed: int, steps: int, resume: bool) -> None:
    """This process and one more train; another one draws the pictures."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # an orderly exit ends the other processes too
    start = 0
    if resume:
        start = torch.load(out / STATE, weights_only=True)["step"]
    elif (out / STATE).exists():
        raise SystemExit(f"{out / STATE} exists: continue with --resume or choose another --out")
    else:
        save_tokenizer(train_tokenizer(), out)
    rendezvous = out / "rendezvous"
    rendezvous.unlink(missing_ok=True)
    shares = stream(out / TOKENIZER, seed, start, steps, PROCESSES)
    for rank in range(1, PROCESSES):
        arguments = rank, rendezvous, shares[rank], out, seed, steps, resume
        multiprocessing.get_context("spawn").Process(target=run, args=arguments, daemon=True).start()
    run(0, rendezvous, shares[0], out, seed, steps, resume)
    report(out / "checkpoint")


def run(rank: int, rendezvous: Path, batches: Queue, out: Path, seed: int, steps: int, resume: bool) -> None:
    """All processes compute the same weights; the first one logs and saves them."""
    join(rank, rendezvous)
    training, log = Training(out, seed, steps, resume), Log()
    first = rank == 0
    if first:
        parameters = sum(parameter.numel() for parameter in training.model.parameters())
        print(f"{parameters:,} parameters; step {training.step} of {steps}", flush=True)
    training.model.train()
    while training.step < steps:
        batch = batches.get()
        log.add(batch, *training.learn(batch))
        done = training.step == steps
        if first and training.step % LOG_EVERY == 0:
            log.write(training.step, learning_rate(training.step, steps))
        if first and (done or training.step % SAVE_EVERY == 0):
            training.save()
        if first and (done or training.step % EXPORT_EVERY == 0):
            export(training.model, training.tokenizer, out / "checkpoint")


def report(checkpoint: Path, per_size: int = 20) -> None:
    print(evaluate(checkpoint, per_size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the training state and the checkpoint")
    parser.add_argument("--steps", type=int, default=3900)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="continue from the state in --out")
    parser.add_argument("--evaluate", type=Path, metavar="DIR", help="only take the exam with this checkpoint")
    parser.add_argument("--per-size", type=int, default=20, help="exam questions per picture size")
    arguments = parser.parse_args()
    if arguments.evaluate:
        report(arguments.evaluate, arguments.per_size)
    elif arguments.out:
        train(arguments.out, arguments.seed, arguments.steps, arguments.resume)
    else:
        parser.error("give --out to train or --evaluate to take the exam")


if __name__ == "__main__":
    main()
