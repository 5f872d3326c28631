"""What a precision costs by kind of question: artifacts of one checkpoint beside PyTorch, on drawn questions.

    python scripts/bench_tasks.py [--questions N] ARTIFACT ...

asks every artifact, and PyTorch, the held-out exam with N questions for each picture size, as `verify --tasks` does,
and prints the table of docs/tasks.md. Nothing is written into the artifacts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from parity_tests.harness.cases.exam import exam_groups
from parity_tests.harness.checks.tasks import ask_all_of
from parity_tests.harness.evidence.tasks import task_score
from parity_tests.harness.verify import open_bench
from qwen3vl_export.evidence.tasks import ALL, Score, TaskScore, percent, points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", type=Path, nargs="+")
    parser.add_argument("--questions", type=int, default=40)
    options = parser.parse_args()
    questions = [question for group in exam_groups(options.questions).values() for question in group]
    scores: dict[str, TaskScore] = {}
    for path in options.artifacts:
        bench = open_bench(path, cases=["text-only"])
        scores[bench.artifact.manifest.name] = task_score(ask_all_of(bench, questions), None)
    print("\n".join(table(scores)))


def table(scores: dict[str, TaskScore]) -> Iterator[str]:
    """A row for each kind of question, two columns for each artifact."""
    first = next(iter(scores.values()))
    columns = [f"{name}: {what}" for name in scores for what in ("difference", "same answer")]
    yield f"| asks | questions | PyTorch | {' | '.join(columns)} |"
    yield f"|---|{'--:|' * (2 + len(columns))}"
    for kind in (*first.kinds, ALL):
        rows = [score.every if kind == ALL else score.kinds[kind] for score in scores.values()]
        yield f"| {kind} | {rows[0].questions:,} | {percent(rows[0].reference_score.value)} | {cells(rows)} |"


def cells(rows: Sequence[Score]) -> str:
    return " | ".join(f"{points(row.difference)} | {percent(row.agreement.value)}" for row in rows)


if __name__ == "__main__":
    main()
