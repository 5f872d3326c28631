"""Entry point of the command `qwen3vl-export`, also as `python -m qwen3vl_export`.

Imports nothing before it can end Ctrl-C and unforeseen errors in one line: importing the commands takes a second.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line of this process; exits with the code of the command."""
    try:
        from .cli.streams import prepare_streams

        prepare_streams()
        from .cli.main import app

        app()
    except KeyboardInterrupt:
        os.write(2, b"error: interrupted\n")
        sys.exit(130)
    except Exception as error:  # while importing; the commands handle their own
        from .cli.crash import CRASHED, debugging, print_without_console, report_crash, trace_of

        trace = trace_of(error) if debugging() else ""
        print_without_console(f"{trace}error: {report_crash(error)}")
        sys.exit(CRASHED)


if __name__ == "__main__":
    main()
