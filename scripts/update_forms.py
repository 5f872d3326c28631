"""Writes the table of source forms in docs/checkpoints.md: each form, and what a test saw become of it.

    python scripts/update_forms.py [--check]

Runs the tests that record outcomes. `--check` changes nothing and fails if the document says something else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from marked import update

from parity_tests.fixtures.forms_table import DOCUMENT, SECTION, VARIABLE, lines
from qwen3vl_export.errors import Qwen3VLExportError

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "parity_tests" / "unit" / "export"


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the table of source forms in docs/checkpoints.md.")
    parser.add_argument("--check", action="store_true", help="change nothing, fail if they differ")
    options = parser.parse_args()
    modules = [path for path in sorted(TESTS.glob("test_*.py")) if "forms_table" in path.read_text("utf-8")]
    with tempfile.TemporaryDirectory() as folder:
        recorded = Path(folder) / "recorded"
        command = [sys.executable, "-m", "pytest", "-q", "-n", "0", *map(str, modules)]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, VARIABLE: str(recorded)})
        if done.returncode:
            return done.returncode
        rows = [tuple(json.loads(line)) for line in recorded.read_text("utf-8").splitlines()]
    try:
        return update(DOCUMENT, {SECTION: lines(rows)}, options.check)
    except Qwen3VLExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
