"""Entry point of the command `qwen3vl-export`, also as `python -m qwen3vl_export`.

Imports nothing before it can end Ctrl-C and unforeseen errors in one line: importing the commands takes a second.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line of this process; exits with the code of the command."""
    try:
        from .cli.streams import prepare_streams

        prepare_streams()
        from .cli.main import app

        app()
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)
    except Exception as error:  # while importing; the commands handle their own
        from .cli.crash import CRASHED, report_crash

        sys.stderr.write(f"error: {report_crash(error)}\n")
        sys.exit(CRASHED)


if __name__ == "__main__":
    main()
