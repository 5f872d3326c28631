"""The commands `fleet plan|run|status`: what they print, and how a mistake ends."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from parity_tests.fixtures.commands import assert_one_line, invoke
from parity_tests.fixtures.fleet_harness import HARNESS
from qwen3vl_export.fleet import plan_table
from qwen3vl_export.fleet.account import statuses_of
from qwen3vl_export.fleet.estimate import Estimate, estimate, speed_of_copies, speed_of_products
from qwen3vl_export.fleet.graph import jobs_of
from qwen3vl_export.fleet.store import open_store
from qwen3vl_export.recipe import load_recipe

GB = 1 << 30
ESTIMATE = Estimate(
    size=17 * GB,
    build_memory=4 * GB,
    build_seconds=90,
    verify_memory=40 * GB,
    unit_seconds=10,
    opening_seconds=1,
)


@pytest.mark.parametrize(
    "arguments, expected",
    {
        "run tinny --store STORE": "tinny: no recipe of that name. Did you mean tiny?",
        "plan tiny --store nonsense://x": "nonsense://x: Protocol not known: nonsense",
        "status tiny --store STORE": "holds no fleet's results. Check --store, or: qwen3vl-export fleet run",
        "run tiny --store FILE": "no directory can be made there",
        "run tiny --store STORE --scheduler tcp://127.0.0.1:9": "tcp://127.0.0.1:9: no scheduler answers there",
        "run tiny --store STORE --scheduler nonsense": "nonsense: no scheduler answers there",
    }.items(),
    ids=lambda value: value.split(" --store")[0] if "--store" in value else None,
)
def test_a_mistake_is_one_line(arguments: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen3vl_export.fleet.cluster.CONNECT_TIMEOUT", 1.0)
    (tmp_path / "file").write_text("")
    given = arguments.replace("STORE", str(tmp_path / "store")).replace("FILE", str(tmp_path / "file"))
    assert_one_line(invoke("fleet", *given.split()), expected)


def test_a_missing_dask_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "qwen3vl_export.fleet.cluster", raising=False)
    monkeypatch.setitem(sys.modules, "distributed", None)
    store = str(tmp_path / "store")
    found = invoke("fleet", "run", "tiny", "--store", store, "--scheduler", "tcp://127.0.0.1:9")
    assert_one_line(found, "fleet needs distributed. Install it: pip install 'qwen3vl-export[fleet]'")


def test_a_plan_tells_bytes_memory_and_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store(str(tmp_path))
    jobs = jobs_of(["tiny", "tiny-int8"], "quick", None, HARNESS)
    store.put(jobs[0].estimate, ESTIMATE.to_json())
    plan_table.show(statuses_of(jobs, store))
    shown = " ".join(capsys.readouterr().out.split())
    assert "tiny build, verify, merge 18,253,611,008 1 min 30 s 4.0 GB" in shown
    assert "40.0 GB 4" in shown
    assert "tiny-int8 not estimated" in shown
    assert "6 tasks, 17.0 GB to write" in shown
    assert "64 workers: about" in shown


def test_an_estimate_is_arithmetic_on_what_was_timed(tmp_path: Path) -> None:
    assert speed_of_products() > 1e8
    assert speed_of_copies() > 1e7
    recipe = load_recipe("tiny").model_copy(update={"graphs": ("embed_tokens",)})
    found = estimate(recipe, tmp_path)
    assert found.size > 544 * 128 * 4  # the table in float32
    assert found.verify_memory > 4 * 2_300_000
    assert found.build_memory > 1 << 28
    assert Estimate.from_json(found.to_json()) == found
