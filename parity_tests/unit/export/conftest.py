"""Fixtures that several modules share: traced graphs, and checkpoints in published quantized forms."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from ...fixtures.checkpoint_edits import edit_tensors
from ...fixtures.moe_checkpoint import split_experts, write_moe_checkpoint
from ...fixtures.quantized_checkpoints import WriteForm, Written, write_quantized_checkpoint


@pytest.fixture(scope="session", autouse=True)
def every_test_shares_traces(share_traces: None) -> None:
    """Builds trace nothing that another test has traced."""


@pytest.fixture(scope="session")
def write(tmp_path_factory: pytest.TempPathFactory) -> WriteForm:
    """Writes the tiny checkpoint in a form, once; its directory and values. Shared: copy it before changing it."""

    @cache
    def write_form(form: str) -> Written:
        directory = tmp_path_factory.mktemp(form)
        return directory, write_quantized_checkpoint(directory, form)

    return write_form


@pytest.fixture(scope="session")
def single_experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts with one tensor for each matrix, as quantizing tools save them."""
    directory = write_moe_checkpoint(tmp_path_factory.mktemp("moe"), "modules")
    edit_tensors(directory, lambda tensors: (split := split_experts(tensors), tensors.clear(), tensors.update(split)))
    return directory
