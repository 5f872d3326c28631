"""The memory that PyTorch's side is measured to take, in a process of its own, is within what was estimated."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ...fixtures.moe_checkpoint import WEIGHTS
from ...fixtures.paths import ROOT, TINY

VOCABULARY = 50_000  # logits take more than all the rest
TABLE = "model.language_model.embed_tokens.weight"
MEASURED = """
import sys
from dataclasses import fields
from pathlib import Path
import numpy as np
from parity_tests.harness.budget import machine
from parity_tests.harness.budget.allocator import map_large_arrays
from parity_tests.harness.budget.activations import FLOAT32, need_of
from parity_tests.harness.budget.memory import LIBRARIES, LOADING, SLACK, MemoryNeeds, parameters_of
from parity_tests.harness.budget.resources import Resources
from parity_tests.harness.budget.sizes import CaseSizes, ModelSizes
from parity_tests.harness.sides.pytorch.inputs import Inputs
from parity_tests.harness.sides.pytorch.reference import Reference
from parity_tests.harness.sides.pytorch.results import Deferred
from parity_tests.harness.sides.pytorch.reference_cache import Store
from parity_tests.harness.sides.pytorch.torch_model import read_config

checkpoint, cache = map(Path, sys.argv[1:])
model, parameters = ModelSizes.of(read_config(checkpoint)[0]), parameters_of(checkpoint)
case = CaseSizes("prompt", rows=1, tokens=400, compared=400)
need, module = need_of(model, case.joined), LOADING * FLOAT32 * max(parameters.values())
nothing = dict.fromkeys((field.name for field in fields(MemoryNeeds)), 0)
pytorch = {"weights": FLOAT32 * parameters.total(), "module": module, "computing": need, "in_step": need.passing}
needs = MemoryNeeds(**nothing | pytorch)
reference = Reference(checkpoint, Store(cache, "x"), streamed=True)
map_large_arrays()
reference.model
before = machine.resident_memory()
budget = before + LIBRARIES + module + round(SLACK * (need.passing + 2.5 * need.held))  # for two calls in step
reference.room = Resources(model, {}, needs, budget, cache, 0).room
for seed in range(4):
    ids = np.random.default_rng(seed).integers(0, 500, (1, 400))
    try:
        reference.prefill(Inputs(ids, np.ones_like(ids), np.empty((0, 1536), np.float32), np.empty((0, 3), np.int64)))
    except Deferred:
        pass
calls = []
reference.settle(lambda name, count: calls.append(count))
peak = machine.read_kilobytes(machine.STATUS, "VmHWM")
print(max(calls), peak - before, budget - before)
"""


@pytest.fixture
def wide_checkpoint(tmp_path: Path) -> Path:
    """The tiny checkpoint with random rows for many more tokens."""
    directory = tmp_path / "checkpoint"
    shutil.copytree(TINY, directory)
    config = json.loads((directory / "config.json").read_text("utf-8"))
    config["text_config"]["vocab_size"] = VOCABULARY
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    tensors = load_file(directory / WEIGHTS)
    table = torch.randn(VOCABULARY, tensors[TABLE].shape[1], generator=torch.Generator().manual_seed(0))
    save_file({**tensors, TABLE: table.to(tensors[TABLE].dtype)}, directory / WEIGHTS, metadata={"format": "pt"})
    return directory


def test_calls_in_step_keep_within_a_budget_of_memory(wide_checkpoint: Path, tmp_path: Path) -> None:
    """Four prompts, of which two fit: they go two by two, and the peak is neither above the budget nor far below."""
    command = [sys.executable, "-c", MEASURED, str(wide_checkpoint), str(tmp_path / "cache")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    together, peak, budget = map(int, result.stdout.split())
    assert together == 2
    assert budget / 4 < peak <= budget
