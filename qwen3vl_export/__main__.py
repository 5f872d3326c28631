"""`python -m qwen3vl_export` is the command `qwen3vl-export`."""

from .cli import main

main()
