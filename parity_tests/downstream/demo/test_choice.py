"""Which device and which precision the demo page takes, and what it refuses, by itself and as it is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from qwen3vl_export.manifest import FileRecord
from qwen3vl_export.packaging.browsers import (
    LARGEST_IN_WASM,
    NEEDS_HALF,
    NO,
    browser_support,
    weight_bytes,
)

from ...fixtures.changed_artifacts import changed
from ..site import Site
from .faulty_site import Faults
from .page import ask, loaded_page, open_page, status
from .stand_in import WEIGHTS, small, visit, with_gpu, write_stand_in, wrong


@pytest.mark.parametrize(
    ("features", "fallback", "options", "device", "dtype"),
    [
        (("shader-f16",), False, {}, "webgpu", "default"),
        (("shader-f16",), True, {}, "wasm", "default"),
        (("timestamp-query",), False, {}, "wasm", "default"),
        (("timestamp-query",), False, {"device": "webgpu"}, "webgpu", "default"),
        ((), False, {}, "wasm", "default"),
        (("shader-f16",), False, {"device": "wasm"}, "wasm", "default"),
        (("shader-f16",), False, {"dtype": "q4f16"}, "webgpu", "q4f16"),
    ],
)
def test_webgpu_is_chosen_where_it_is_real_and_computes_in_float16(
    visitor: Page,
    site: Site,
    faults: Faults,
    features: tuple[str, ...],
    fallback: bool,
    options: Mapping[str, str],
    device: str,
    dtype: str,
) -> None:
    with_gpu(faults, features, fallback)
    page = visit(visitor, small(site, **options))
    page.wait_for_selector("#ask:enabled")
    name = {"webgpu": "WebGPU", "wasm": "WebAssembly"}[device]
    assert status(page) == f"small is ready on {name} in {'float32' if dtype == 'default' else 'float16'}"
    assert (page.input_value("#device"), page.input_value("#dtype")) == (device, dtype)


@pytest.mark.parametrize(("device", "level"), [("wasm", "layout"), ("webgpu", None)])
def test_webassembly_is_told_to_keep_float16_weights_as_they_are(
    browser: Browser, site: Site, faults: Faults, device: str, level: str | None
) -> None:
    with_gpu(faults)
    page = loaded_page(browser, small(site, device=device, dtype="q4f16"))
    loaded = json.loads(ask(page, "options").answer)
    assert (loaded["device"], loaded["dtype"]) == (device, "q4f16")
    assert loaded.get("session_options", {}).get("graphOptimizationLevel") == level


def test_the_page_refuses_what_the_packaging_says_does_not_run(visitor: Page, site: Site, tiny_artifact: Path) -> None:
    """Every precision on every device: dtypes, caches, and weights that WebAssembly holds or does not."""
    weights = f"onnx/{WEIGHTS}"
    cases, expected = [], []
    for dtype, cache, size, half in product(
        ("float32", "float16", "bfloat16"), ("none", "int8"), (1_000_000, LARGEST_IN_WASM), (True, False)
    ):
        changes = {"dtype": dtype, "quantization": {"cache": {"method": cache}}}
        artifact = changed(tiny_artifact, {weights: FileRecord(size, "0" * 64)}, **changes)
        for device, answer in browser_support(artifact).items():
            name = {"WebAssembly": "wasm", "WebGPU": "webgpu"}[device]
            cases.append([{"recipe": changes, "bytes": weight_bytes(artifact)}, name, {"half": half}])
            expected.append(not answer.startswith(NO) and (half or NEEDS_HALF not in answer))
    visit(visitor, small(site))
    script = f"""async (cases) => {{
      const {{ obstacleTo }} = await import('{site.url}/demo/page/choice.js');
      return cases.map((entry) => obstacleTo(...entry) === undefined);
    }}"""
    assert visitor.evaluate(script, cases) == expected
    assert {*expected} == {True, False}


def test_float16_is_refused_on_a_gpu_without_it(visitor: Page, site: Site, faults: Faults) -> None:
    with_gpu(faults, ("timestamp-query",))
    page = visit(visitor, small(site, device="webgpu", dtype="fp16"))
    assert wrong(page).startswith("?dtype=fp16: the GPU here does not compute in float16 (shader-f16).")


def test_a_default_precision_that_does_not_run_here_is_not_chosen(visitor: Page, site: Site) -> None:
    write_stand_in(site.root / "brain", dtype="bfloat16")
    visit(visitor, small(site, "brain")).wait_for_selector("#ask:enabled")
    assert status(visitor) == "small is ready on WebAssembly in float16"
    assert wrong(visit(visitor, small(site, "brain", dtype="default"))).startswith(
        "?dtype=default: no browser computes in bfloat16."
    )


def test_weights_that_webassembly_cannot_hold_are_refused(visitor: Page, site: Site, faults: Faults) -> None:
    write_stand_in(site.root / "huge", size=4_000_000_000)
    page = visit(visitor, small(site, "huge", dtype="default"))
    assert wrong(page).startswith("?dtype=default: its 4.0 GB do not fit into WebAssembly (4 GB). Take ?device=webgpu")
    assert WEIGHTS not in faults.requested


def test_another_precision_can_be_chosen_on_the_page(visitor: Page, site: Site) -> None:
    page = visit(visitor, small(site))
    page.wait_for_selector("#ask:enabled")
    page.select_option("#dtype", "q4f16")
    page.wait_for_url("**dtype=q4f16**")
    page.wait_for_function("document.getElementById('status').textContent.endsWith('in float16')")


def test_a_large_download_waits_for_consent(browser: Browser, site: Site, faults: Faults) -> None:
    write_stand_in(site.root / "large", size=1_200_000_000)
    page = open_page(browser, small(site, "large"))
    page.wait_for_selector("#go:visible")
    assert status(page) == "small is a download of 1.2 GB"
    assert page.inner_text("#detail").startswith("It needs about 2.9 GB of memory")
    assert WEIGHTS not in faults.requested
    page.click("#go")
    assert wrong(page).startswith(f"onnx/{WEIGHTS} ")  # of 7 bytes: the download has begun
    assert WEIGHTS in faults.requested
