"""Compare an artifact on a device with the same artifact on the CPU, stage by stage, and print the differences.

    python scripts/compare_devices.py artifacts/tiny-cuda cuda

On both: features of two pictures, then logits of a prompt read in pieces and of each step after it, for one row and for
a batch of three with padding, always after the CPU's tokens, so that one token that differs does not change the rest.
The last line says whether the device's greedy tokens are the CPU's. Needs an onnxruntime with the provider; takes
seconds on a tiny artifact, and a few minutes on a published size, most of them on the CPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from qwen3vl_export.runtime import Image, Prepared, Qwen3VL
from qwen3vl_export.runtime.conversation import picture_digests
from qwen3vl_export.runtime.decoder import embed_generated
from qwen3vl_export.runtime.generate import prefill
from qwen3vl_export.runtime.positions import next_positions
from qwen3vl_export.runtime.prompts.messages import as_messages

STEPS, CHUNK = 12, 64
QUESTIONS = ("What is in these pictures?", "What is 2+3?", "Name three colours. " * 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("device", help="as for `Qwen3VL.load`: cuda, webgpu")
    parser.add_argument("--precision", default="", help="one of the artifact's precisions")
    arguments = parser.parse_args()
    host, device = (
        Qwen3VL.load(arguments.artifact, device=name, precision=arguments.precision)
        for name in ("cpu", arguments.device)
    )
    noise = np.random.default_rng(0).integers(0, 255, (150, 211, 3), dtype=np.uint8)
    pictures = [Image(PIL.Image.fromarray(noise)), Image(PIL.Image.new("RGB", (64, 96), "orange"))]
    same = True
    for name, contents in (
        ("one row", [[*pictures, QUESTIONS[0]]]),
        ("three rows", [[pictures[1], QUESTIONS[0]], QUESTIONS[1], QUESTIONS[2]]),
    ):
        prepared = host.prepare([as_messages(content) for content in contents])
        started = time.perf_counter()
        expected = list(results(host, prepared, None))
        between = time.perf_counter()
        tokens = np.stack([logits.argmax(-1) for logits in expected[1:]])
        actual = list(results(device, prepared, tokens))
        print(f"{name}: CPU {between - started:.1f} s, {arguments.device} {time.perf_counter() - between:.1f} s")
        for stage, truth, value in zip(("features", "prompt", *["step"] * STEPS), expected, actual, strict=True):
            difference = np.abs(truth.astype(np.float32) - value.astype(np.float32)).max(initial=0)
            print(f"  {stage:8} max abs {difference:.3g} of {np.abs(truth).max(initial=0):.3g}")
        same = same and bool((np.stack([logits.argmax(-1) for logits in actual[1:]]) == tokens).all())
    print(f"greedy tokens: {'the same' if same else 'DIFFERENT'}")


def results(model: Qwen3VL, prepared: Prepared, tokens: Any) -> Iterator[Any]:
    """Features [T, W], logits [B, V] of the prompt, then those of every step after it.

    Args:
        tokens: int64 [steps + 1, B] that are read after the prompt; None reads the likeliest.
    """
    features = model.features(prepared, picture_digests(prepared))
    yield features
    logits, cache = prefill(model.sessions, prepared, features, CHUNK)
    yield logits
    lengths = prepared.attention_mask.sum(axis=1, keepdims=True)
    mask = prepared.attention_mask
    for step in range(STEPS):
        read = logits.argmax(-1) if tokens is None else tokens[step]
        mask = np.concatenate((mask, np.ones((len(mask), 1), np.int64)), axis=1)
        rows = embed_generated(model.sessions, read[:, None])
        logits = model.decode(rows, mask, next_positions(prepared.rope_deltas, lengths + step), cache, 1)[0][:, -1]
        yield logits


if __name__ == "__main__":
    main()
