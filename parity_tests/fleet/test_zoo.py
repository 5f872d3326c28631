"""zoo.html: what it says of a store, and how it looks and answers in a real browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from qwen3vl_export.artifact import PARITY, SUMMARY
from qwen3vl_export.errors import FleetError
from qwen3vl_export.evidence import Hardware, Speed, Summary
from qwen3vl_export.fleet import zoo
from qwen3vl_export.fleet.store import Store, open_store
from qwen3vl_export.hash_cache import sha256_file
from qwen3vl_export.json_form import to_json
from qwen3vl_export.manifest import MANIFEST

DESKTOP, PHONE = (1280, 900), (390, 844)
INT4 = {
    "vision_encoder": {"method": "int8"},
    "embeddings": {"method": "int8"},
    "decoder_model_merged": {"method": "int4"},
}
VISIBLE = "[...document.querySelectorAll('tbody tr:not([hidden]) td.name strong')].map((one) => one.textContent)"
OVERFLOW = "document.documentElement.scrollWidth - innerWidth"


def add_artifact(store: Store, manifest: dict[str, Any], name: str, source: str, **recipe: Any) -> Path:
    values = manifest | {
        "name": name,
        "recipe": manifest["recipe"] | recipe,
        "checkpoint": manifest["checkpoint"] | {"source": source},
    }
    folder = Path(store.url) / "artifacts" / f"{name}-0123456789abcdef0123"
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(json.dumps(values), "utf-8")
    return folder / MANIFEST


def add_report(store: Store, manifest: Path, matrix: str, planned: int, failed: int, speed: float) -> None:
    folder = Path(store.url) / "reports" / f"{manifest.parent.name}-{matrix}"
    folder.mkdir(parents=True)
    summary = Summary(
        artifact=manifest.parent.name,
        manifest_sha256=sha256_file(manifest),
        matrix=matrix,
        passed=not failed,
        planned=planned,
        hardware=Hardware("Some CPU", 8, "Linux x86_64"),
        speed=Speed(1, 10, 900, 400 / speed, 1000, 600 / speed) if speed else None,
        failed=failed,
        seconds={"total": 1.0},
    )
    (folder / SUMMARY).write_text(to_json(summary), "utf-8")
    (folder / PARITY).write_text("{}", "utf-8")
    (folder / zoo.HTML).write_text(f"<!doctype html><title>{manifest.parent.name} {matrix}</title>", "utf-8")


@pytest.fixture(scope="module")
def store(tiny_artifact: Path, tiny_fixed_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Four artifacts: passed twice, passed, failed, and not verified; and one that is half there."""
    made = open_store(str(tmp_path_factory.mktemp("zoo")))
    manifest = json.loads((tiny_artifact / MANIFEST).read_text("utf-8"))
    large, small = "Qwen/Qwen3-VL-30B-A3B-Instruct", "Qwen/Qwen3-VL-4B-Instruct"
    first = add_artifact(made, manifest, "qwen3-vl-4b-instruct", small)
    add_report(made, first, "quick", 210, 0, 10)
    add_report(made, first, "standard", 621, 0, 12)
    add_report(made, add_artifact(made, manifest, "qwen3-vl-4b-int4", small, quantization=INT4), "standard", 621, 0, 31)
    add_report(made, add_artifact(made, manifest, "qwen3-vl-30b-fp16", large, dtype="float16"), "standard", 621, 3, 4.2)
    bound = json.loads((tiny_fixed_artifact / MANIFEST).read_text("utf-8"))
    add_artifact(made, bound, "qwen3-vl-30b-fixed", large)
    (Path(made.url) / "artifacts" / "half-0123").mkdir()
    zoo.write_zoo(made)
    return made


def test_a_precision_in_words() -> None:
    int8 = {"method": "int8"}
    plans = dict.fromkeys(("vision_encoder", "embeddings", "decoder_model_merged"), int8)
    assert zoo.precision({"dtype": "float32", "quantization": plans}) == "int8"
    plans = {"decoder_model_merged": {"method": "int4"}}
    assert zoo.precision({"dtype": "float16", "quantization": plans}) == "vision float16, table float16, decoder int4"
    assert zoo.precision({"dtype": "bfloat16"}) == "bfloat16"
    plans = {"cache": int8}
    assert zoo.precision({"dtype": "float32", "quantization": plans}) == "float32, cache int8"


def opened(browser: Browser, store: Store, size: tuple[int, int] = DESKTOP, scheme: str = "light") -> Page:
    viewport = {"width": size[0], "height": size[1]}
    page = browser.new_context(viewport=viewport, color_scheme=scheme).new_page()  # type: ignore[arg-type]
    page.goto(f"file://{store.url}/{zoo.ZOO}")
    return page


def test_what_the_entries_say(store: Store) -> None:
    found = {entry.manifest.name: entry for entry in zoo.entries(store)}
    assert list(found) == ["qwen3-vl-4b-instruct", "qwen3-vl-4b-int4", "qwen3-vl-30b-fixed", "qwen3-vl-30b-fp16"]
    first = found["qwen3-vl-4b-instruct"]
    assert [report.summary.matrix for report in first.reports] == ["standard", "quick"]
    assert first.reports[0].speed == pytest.approx(12)
    assert first.manifest.bytes > 0
    assert [entry.precision for entry in found.values()] == [
        "float32",
        "vision int8, table int8, decoder int4",
        "float32",
        "float16",
    ]
    assert [entry.verdict for entry in found.values()] == ["good", "good", "none", "bad"]
    assert found["qwen3-vl-30b-fixed"].sizes == "384x384"


def test_an_empty_store_has_a_page(tmp_path: Path) -> None:
    made = open_store(str(tmp_path))
    zoo.write_zoo(made)
    assert "The store holds no artifact yet." in (tmp_path / zoo.ZOO).read_text("utf-8")


def test_a_manifest_of_another_format_is_refused(tmp_path: Path) -> None:
    made = open_store(str(tmp_path))
    (tmp_path / "artifacts" / "a").mkdir(parents=True)
    (tmp_path / "artifacts" / "a" / MANIFEST).write_text("[]")
    with pytest.raises(FleetError, match="holds what this version cannot read"):
        zoo.write_zoo(made)
    assert not (tmp_path / zoo.ZOO).exists()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_and_needs_nothing_else(
    browser: Browser, store: Store, size: tuple[int, int], scheme: str
) -> None:
    page = opened(browser, store, size, scheme)
    assert page.evaluate(OVERFLOW) <= 0
    assert page.inner_text("h1") == "2 of 4 artifacts proven"
    assert page.evaluate("performance.getEntriesByType('resource').length") == 0
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(247, 247, 245)" if scheme == "light" else "rgb(19, 19, 22)")
    page.context.close()


def test_the_page_finds_filters_sorts_and_leads_to_the_reports(browser: Browser, store: Store) -> None:
    page = opened(browser, store)
    page.fill("#find", "4b INT4")
    assert page.evaluate(VISIBLE) == ["qwen3-vl-4b-int4"]
    page.fill("#find", "no such thing")
    assert page.evaluate(VISIBLE) == []
    assert page.is_visible("#nothing")
    page.fill("#find", "")
    page.click("button[data-verdict=bad]")
    assert page.evaluate(VISIBLE) == ["qwen3-vl-30b-fp16"]
    page.click("button[data-verdict=none]")
    assert page.evaluate(VISIBLE) == ["qwen3-vl-30b-fixed", "qwen3-vl-30b-fp16"]
    page.click("button[data-verdict=bad]")
    page.click("button[data-verdict=none]")
    page.click("th:has-text('speed') button")
    assert page.evaluate(VISIBLE) == [
        "qwen3-vl-30b-fixed",
        "qwen3-vl-30b-fp16",
        "qwen3-vl-4b-instruct",
        "qwen3-vl-4b-int4",
    ]
    page.click("th:has-text('speed') button")
    assert page.evaluate(VISIBLE)[0] == "qwen3-vl-4b-int4"
    page.click("a.chip:has-text('standard') >> nth=0")
    page.wait_for_url("**/reports/**")
    assert page.title() == "qwen3-vl-4b-int4-0123456789abcdef0123 standard"
    page.go_back()
    for link in page.eval_on_selector_all("a", "(all) => all.map((one) => one.href)"):
        assert Path(link.removeprefix("file://")).is_file(), link
    page.context.close()
