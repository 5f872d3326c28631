"""Writes the table of planted faults in docs/parity.md: each fault, and the first check that finds it.

    python scripts/update_detection.py [artifacts] [--check]

Plants every fault in a copy of the artifact it is for (artifacts/tiny, artifacts/tiny-int4) and verifies that with the
quick matrix. `--check` changes nothing and fails if the document says something else.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from marked import update

from parity_tests.faults.detection import rows
from qwen3vl_export.errors import Qwen3VLExportError

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "parity.md"


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the table of planted faults in docs/parity.md.")
    parser.add_argument("artifacts", nargs="?", type=Path, default=ROOT / "artifacts", help="where the artifacts lie")
    parser.add_argument("--check", action="store_true", help="change nothing, fail if they differ")
    options = parser.parse_args()
    try:
        lines = rows(lambda recipe: options.artifacts / recipe, log=print)
        return update(DOCUMENT, {"faults": lines}, options.check)
    except Qwen3VLExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
