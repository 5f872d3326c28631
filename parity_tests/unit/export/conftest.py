"""Fixtures that several modules share: traced graphs, adapters, and checkpoints in published quantized forms."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from ...fixtures.checkpoint_edits import edit_tensors
from ...fixtures.moe_checkpoint import split_experts, write_moe_checkpoint
from ...fixtures.paths import TINY
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


@pytest.fixture(scope="module")
def tiny() -> dict[str, Tensor]:
    """The tensors of the tiny checkpoint."""
    return load_file(TINY / "model.safetensors")


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each kind for adapters. Shared: copy it before changing it."""
    from ...fixtures.adapters import MIXTURE, TIED, UNTIED, write_base

    return {kind: write_base(tmp_path_factory.mktemp(kind), kind) for kind in (TIED, UNTIED, MIXTURE)}


@pytest.fixture(scope="session")
def plain_adapter(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of two products a layer. Shared: copy it before changing it."""
    from ...fixtures.adapters import PAIR, TIED, write_adapter

    return write_adapter(tmp_path_factory.mktemp("plain"), bases[TIED], target_modules=PAIR)
