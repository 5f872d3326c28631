"""The second decoder is compared with the first, and one that computes something else is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from qwen3vl_export.artifact import Artifact
from qwen3vl_export.contract import DECODER
from qwen3vl_export.promise import PACKAGED, SECOND_DECODER, second_decoder

from ...faults.catalogue import Fault
from ...faults.graphs import RMS_NORMS
from ...harness import verify
from ...harness.budget.resources import Resources
from ...harness.judging.outcome import Outcome
from ...harness.verify import open_bench, run


def packaged(artifact: Path) -> Outcome:
    results = run(open_bench(artifact, "quick"), "quick", only=lambda check: check.stage == PACKAGED, cases=())
    (outcome,) = results.outcomes
    return outcome


def widen_epsilon(artifact: Artifact) -> list[Path]:
    """Change the norms of the second decoder a little."""
    path = artifact.root / second_decoder(artifact.manifest.graphs[DECODER]["file"])
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        if node.op_type in RMS_NORMS:
            next(attribute for attribute in node.attribute if attribute.name == "epsilon").f *= 2
    onnx.save(model, path)
    return [path]


@pytest.mark.parametrize("build", ["tiny", "tiny-fp16"])
def test_both_decoders_compute_the_same(build: str, built: Callable[[str], Path]) -> None:
    outcome = packaged(built(build))
    assert outcome.passed, outcome.message
    assert outcome.measures["compared"] > 1000


def test_where_the_first_decoder_is_cut_the_second_is_too(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a whole it would take more memory than there is."""
    monkeypatch.setattr(verify, "must_stream", lambda *_: True)
    monkeypatch.setattr(Resources, "piece", lambda *_: 1_200_000)
    report = run(open_bench(tiny_artifact, "quick"), "quick", only=lambda check: check.stage == PACKAGED, cases=())
    assert all(outcome.passed for outcome in report.outcomes)
    pieces = report.pieces or {}
    assert pieces[SECOND_DECODER] == pieces[DECODER] > 1


def test_a_second_decoder_that_computes_something_else_is_found(tiny_artifact: Path, tmp_path: Path) -> None:
    fault = Fault("second-decoder", PACKAGED, "", change=widen_epsilon)
    outcome = packaged(fault.plant(tiny_artifact, tmp_path / "broken"))
    assert not outcome.passed and "differences" in outcome.message
