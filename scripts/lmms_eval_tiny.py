"""Drawn questions under lmms-eval and under `verify --tasks`: both must give the artifact the same scores.

    python scripts/lmms_eval_tiny.py ARTIFACT [--questions N] [--pytorch CHECKPOINT]

Needs the extra `lmms` (docs/tasks.md), and no network. The questions are those of the held-out exam, N for each picture
size, as a local task of lmms-eval, scored by its own metrics `exact_match` and `anls`; and as two task files. With
--pytorch, lmms-eval's own model `qwen3_vl` is asked them too, on the CPU and in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from parity_tests.harness.cases.exam import exam_groups
from parity_tests.harness.cases.task_files import write_task
from qwen3vl_export.artifact import PARITY
from qwen3vl_export.evidence import Evidence
from qwen3vl_export.json_form import from_json

METRICS = {"exact": "exact_match", "anls": "anls"}  # ours -> lmms-eval's
SAME = 1e-6  # scores are rounded to six digits
TASK = """\
task: drawn
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_visual: !function drawn.doc_to_visual
doc_to_text: question
doc_to_target: answers
generation_kwargs:
  max_new_tokens: 48
  temperature: 0
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
  - metric: anls
    aggregation: mean
    higher_is_better: true
"""
FUNCTIONS = """\
from pathlib import Path

from qwen3vl_export.runtime.pictures.images import read_file


def doc_to_visual(doc):
    return [read_file(Path(__file__).parent / name) for name in doc["images"]]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--questions", type=int, default=2)
    parser.add_argument("--pytorch", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        write_questions(folder, options.questions)
        verified = verify(options.artifact, folder)
        harness = lmms_eval(folder, "qwen3vl_export", f"artifact={options.artifact}")
        for metric, theirs in METRICS.items():
            score = verified[metric]
            print(f"{theirs}: {harness[theirs]:.6f} in lmms-eval, {score:.6f} in verify --tasks")
            if abs(harness[theirs] - score) > SAME:
                raise SystemExit(f"the scores of {theirs} differ")
        if options.pytorch:
            settings = f"pretrained={options.pytorch},device=cpu,device_map=cpu,system_prompt="
            pixels = json.loads((options.pytorch / "preprocessor_config.json").read_text("utf-8"))["size"]
            settings += f",min_pixels={pixels['shortest_edge']},max_pixels={pixels['longest_edge']}"
            print(f"PyTorch (qwen3_vl, bfloat16): {lmms_eval(folder, 'qwen3_vl', settings)}")


def write_questions(folder: Path, per_size: int) -> None:
    """The exam with its pictures as a task of lmms-eval, and as a task file for each metric."""
    questions = [question for group in exam_groups(per_size).values() for question in group if question.images]
    for metric in METRICS:
        write_task(folder / f"{metric}.jsonl", [replace(question, metric=metric) for question in questions])
    (folder / "drawn.yaml").write_text(TASK.format(file=folder / "exact.jsonl"), "utf-8")
    (folder / "drawn.py").write_text(FUNCTIONS, "utf-8")


def verify(artifact: Path, folder: Path) -> dict[str, float]:
    """The artifact's scores by `verify --tasks`, by metric."""
    files = [part for metric in METRICS for part in ("--tasks", str(folder / f"{metric}.jsonl"))]
    history = ["--history", str(folder / "history.jsonl"), "--matrix", "quick"]
    command = [sys.executable, "-m", "qwen3vl_export", "verify", str(artifact), *files, *history]
    run(command, folder)
    evidence = from_json(Evidence, (artifact / PARITY).read_bytes())
    tasks = evidence.tasks or {}
    return {metric: tasks[metric].every.score.value for metric in METRICS}


def lmms_eval(folder: Path, model: str, settings: str) -> dict[str, float]:
    """The scores that lmms-eval gives a model, by metric."""
    output = folder / f"results-{model}"
    command = [sys.executable, "-m", "lmms_eval", "--model", model, "--model_args", settings, "--tasks", "drawn"]
    run([*command, "--include_path", str(folder), "--batch_size", "1", "--output_path", str(output)], folder)
    (file,) = output.rglob("*_results.json")
    values: dict[str, Any] = json.loads(file.read_text("utf-8"))["results"]["drawn"]
    return {name: values[f"{name},none"] for name in METRICS.values()}


def run(command: list[str], folder: Path) -> None:
    """Run a command without the network; its output is shown only if it fails."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    finished = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True)
    if finished.returncode:
        print(finished.stdout[-4000:], finished.stderr[-4000:])
        raise SystemExit(f"{' '.join(command)} failed")


if __name__ == "__main__":
    main()
