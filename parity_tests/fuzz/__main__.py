"""`python -m parity_tests.fuzz`: fuzz for some minutes, or repeat one input. Exits with 1 if an input failed."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path

from parity_tests.fixtures.tiny_builds import build_once

from .campaign import make_inputs, run_campaign
from .targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m parity_tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, help="shared by the targets; default: as many inputs as in CI")
    parser.add_argument("--target", action="append", choices=TARGETS, help="may be repeated; default: all")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs; default: 0, as in CI")
    parser.add_argument("--input", type=Path, help="try this file alone")
    options = parser.parse_args()
    targets = options.target or list(TARGETS)
    artifact = build_once("tiny")
    failed = False
    for target in targets:
        inputs = [options.input.read_bytes()] if options.input else make_inputs(target, artifact, options.seed)
        until = float("inf")
        if options.minutes:
            until = time.monotonic() + options.minutes * 60 / len(targets)
        else:
            inputs = itertools.islice(inputs, TARGETS[target].inputs)
        report = run_campaign(target, artifact, inputs, until=until)
        failed = failed or bool(report.failures)
        print(report, flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
