"""Hostile input: mutated pictures, recipes, artifacts, templates, messages, checkpoints and URLs, from a seed.

Every input must work or end in one `Qwen3VLExportError` of one line, within the seconds and megabytes of its target,
and nothing outside its directory may be read, written or removed.

    targets/        what is fuzzed: how an input of each kind is made, and what reads it
    mutations.py    random changes of bytes, text and JSON
    worker.py       the process in which an input is tried, and its limits
    guard.py        what that process may touch
    campaign.py     many inputs, and a file for each that fails
    __main__.py     `python -m parity_tests.fuzz --minutes 30`
"""
