"""A verification in parts is the verification in one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parity_tests.harness import plan, shards
from parity_tests.harness import verify as harness
from parity_tests.harness.cases.matrix import Matrix, load_matrix
from qwen3vl_export.artifact import JUNIT, PARITY, SUMMARY
from qwen3vl_export.errors import ParityError
from qwen3vl_export.evidence import Evidence, Hardware, summarize
from qwen3vl_export.json_form import from_json, to_json, to_values
from qwen3vl_export.recipe.model import Recipe

SMALL = ("minimum-64x64", "text-only", "grid-2x2")


@pytest.fixture(scope="module", autouse=True)
def small_matrix() -> Iterator[None]:
    """Three cases, and an exam of one question a group."""
    whole = load_matrix()
    cases = [case for case in whole.cases if case.name in SMALL]
    few = whole.model_copy(update={"cases": cases, "exam_questions": {"quick": 1, "standard": 1, "full": 1}})

    def load() -> Matrix:
        return few

    with pytest.MonkeyPatch.context() as patch:
        for module in (harness, plan, shards):
            patch.setattr(module, "load_matrix", load)
        yield


@pytest.fixture(scope="module")
def parts(tiny_artifact: Path) -> list[bytes]:
    values = json.loads((tiny_artifact / "manifest.json").read_text("utf-8"))["recipe"]
    units = list(shards.units(Recipe.model_validate_json(json.dumps(values)), "quick"))
    assert set(units) == {"sampling[generation-settings]", *SMALL, "packaged[decoder_model_merged]", "exam"}
    return [shards.verify_part(tiny_artifact, "quick", names) for names in (units[:2], units[2:3], units[3:])]


def comparable(evidence: dict[str, Any]) -> dict[str, Any]:
    """Evidence without what no two runs share: how long it took, and which of PyTorch's results were kept."""
    checks = [{key: value for key, value in check.items() if key != "seconds"} for check in evidence["checks"]]
    rest = {key: value for key, value in evidence.items() if key not in ("seconds", "speed", "reference_results")}
    counted = {key: value for key, value in evidence["speed"].items() if not key.endswith("_seconds")}
    return rest | {"checks": checks, "speed": counted}


def test_parts_together_are_the_evidence_of_a_single_run(tiny_artifact: Path, parts: list[bytes]) -> None:
    files = shards.merge_parts(tiny_artifact, "quick", parts)
    merged = json.loads(files[PARITY])
    single = to_values(harness.run(harness.open_bench(tiny_artifact, "quick"), "quick").evidence())
    assert comparable(merged) == comparable(single)
    assert merged["speed"]["prompt_seconds"] > 0 and merged["speed"]["new_seconds"] > 0
    assert set(merged["seconds"]) == set(single["seconds"])
    assert merged["passed"] is True
    assert files == shards.merge_parts(tiny_artifact, "quick", parts)
    assert b"testcase" in files[JUNIT]
    assert files[SUMMARY].decode() == to_json(summarize(from_json(Evidence, files[PARITY])))


def test_a_missing_or_doubled_part_is_no_evidence(tiny_artifact: Path, parts: list[bytes]) -> None:
    with pytest.raises(ParityError, match=r"\d+ checks are in no part"):
        shards.merge_parts(tiny_artifact, "quick", parts[:-1])
    with pytest.raises(ParityError, match="is in two parts"):
        shards.merge_parts(tiny_artifact, "quick", [*parts, parts[0]])


@pytest.mark.parametrize("key, value", [("manifest_sha256", "0" * 64), ("matrix", "full"), ("versions", {})])
def test_a_part_of_something_else_is_refused(tiny_artifact: Path, parts: list[bytes], key: str, value: object) -> None:
    foreign = json.dumps(json.loads(parts[0]) | {key: value}).encode()
    with pytest.raises(ParityError, match=f"a part has {key}"):
        shards.merge_parts(tiny_artifact, "quick", [foreign, *parts[1:]])


def test_a_unit_that_is_not_planned_is_refused(tiny_artifact: Path) -> None:
    with pytest.raises(ParityError, match="its plan has no square-1x1"):
        shards.verify_part(tiny_artifact, "quick", ["square-1x1"])


def test_machines_that_differ_are_all_named() -> None:
    first, second, silent = Hardware("A", 4, "Linux"), Hardware("B", 2, "Linux"), Hardware(None, None, "Linux")
    assert shards.merge_hardware([first, first]) == first
    assert shards.merge_hardware([first, second]) == Hardware("A; B", 2, "Linux")
    assert shards.merge_hardware([first, silent]) == first


def test_a_part_that_is_no_part_is_refused(tiny_artifact: Path, parts: list[bytes]) -> None:
    half = json.dumps({key: value for key, value in json.loads(parts[0]).items() if key != "seconds"}).encode()
    with pytest.raises(ParityError, match=r"a part cannot be read \(seconds is missing\)\. Run the fleet again"):
        shards.merge_parts(tiny_artifact, "quick", [half, *parts[1:]])
