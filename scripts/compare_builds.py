"""Build the tiny recipes of a revision and of the working tree, and compare every file, byte for byte.

    python scripts/compare_builds.py REVISION [RECIPE ...]    # 1 if any file differs

For changes that must not change artifacts. Of a `manifest.json` that differs it prints which values do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MISSING = "missing"


def build(source: Path, recipe: str, out: Path) -> Path:
    """The artifact that the sources in `source` make of their recipe."""
    command = [sys.executable, "-m", "qwen3vl_export", "build", f"recipes/{recipe}.yaml", "--out", str(out / recipe)]
    environment = {**os.environ, "PYTHONPATH": str(source), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    subprocess.run(command, cwd=source, env=environment, check=True, stdout=subprocess.DEVNULL)
    return out / recipe


def file_differences(before: Path, after: Path) -> list[str]:
    """One line for each file that is not in both directories with the same bytes."""
    names = sorted({path.relative_to(root) for root in (before, after) for path in root.rglob("*") if path.is_file()})
    lines = []
    for name in names:
        pair = [root / name for root in (before, after)]
        if not all(path.is_file() for path in pair):
            lines.append(f"{name}: only {'before' if pair[0].is_file() else 'after'}")
        elif pair[0].read_bytes() != pair[1].read_bytes():
            values = [json.loads(path.read_text("utf-8")) for path in pair] if name.suffix == ".json" else [{}, {}]
            lines.append("\n    ".join([f"{name}: differs", *value_differences(values[0], values[1])]))
    return lines


def value_differences(before: Any, after: Any, path: str = "") -> list[str]:
    """The paths of the values that differ in two JSON documents."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            line
            for key in sorted({*before, *after})
            for line in value_differences(before.get(key, MISSING), after.get(key, MISSING), f"{path}.{key}")
        ]
    return [] if before == after else [f"{path[1:]}: {before!r} -> {after!r}"]


def main(revision: str, recipes: list[str]) -> int:
    recipes = recipes or sorted(path.stem for path in (ROOT / "recipes").glob("tiny*.yaml"))
    differing = 0
    with tempfile.TemporaryDirectory() as scratch:
        sources = Path(scratch) / "sources"
        subprocess.run(["git", "worktree", "add", "--detach", str(sources), revision], cwd=ROOT, check=True)
        try:
            for recipe in recipes:
                before, after = (build(tree, recipe, Path(scratch) / tree.name) for tree in (sources, ROOT))
                lines = file_differences(before, after)
                differing += len(lines)
                print(
                    f"{recipe}: {'the same bytes' if not lines else f'{len(lines)} files differ'}", *lines, sep="\n  "
                )
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(sources)], cwd=ROOT, check=True)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
