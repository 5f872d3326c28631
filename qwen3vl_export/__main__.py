"""`python -m qwen3vl_export` is the command `qwen3vl-export`."""

from .cli.main import main

main()
