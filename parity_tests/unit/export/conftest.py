"""Fixtures that several modules share: traced graphs, and the tiny checkpoint in published quantized forms."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest

from ...fixtures.quantized_checkpoints import WriteForm, Written, write_quantized_checkpoint
from ...fixtures.traces import shared_traces


@pytest.fixture(scope="session", autouse=True)
def traces() -> Iterator[None]:
    """Builds trace nothing that another test has traced."""
    with shared_traces():
        yield


@pytest.fixture(scope="session")
def write(tmp_path_factory: pytest.TempPathFactory) -> WriteForm:
    """Writes the tiny checkpoint in a form, once; its directory and values. Shared: copy it before changing it."""

    @cache
    def write_form(form: str) -> Written:
        directory = tmp_path_factory.mktemp(form)
        return directory, write_quantized_checkpoint(directory, form)

    return write_form
