"""The table of source forms has rows of forms that tests still know, in the order of its groups."""

from __future__ import annotations

import re
from itertools import groupby

from parity_tests.fixtures.forms_table import GROUPS, ROTARY, lines, rows
from parity_tests.fixtures.paths import ROOT


def test_no_row_is_left_of_a_form_that_no_test_records() -> None:
    files = [*(ROOT / "parity_tests").rglob("*.py"), *(ROOT / "qwen3vl_export").rglob("*.py")]
    sources = "\n".join(path.read_text("utf-8") for path in files)
    for _, form, _ in rows():
        pieces = [piece.strip() for piece in re.split(r"[`:,]|\d+", form.replace("\\|", "|"))]
        assert all(piece in sources for piece in pieces), form


def test_every_group_has_forms_that_are_built_and_forms_that_are_refused() -> None:
    by_group = groupby(rows(), key=lambda row: row[0])
    outcomes = {group: {re.split("[:;]", outcome)[0] for *_, outcome in of} for group, of in by_group}
    assert list(outcomes) == list(GROUPS)
    assert all(kinds == {"built exactly", "refused"} for group, kinds in outcomes.items() if group != ROTARY)


def test_the_table_reads_back_as_it_was_written() -> None:
    written = list(lines(rows()))
    assert written[2] == f"| **{GROUPS[0]}** | |" and len(written) == len(rows()) + len(GROUPS) + 2
