"""Faults of networks, servers and addresses while the demo page loads: each is said, and leaves a way on.

Faults of downloads are tried on transformers.js itself; all else is on a stand-in that answers without a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus

import pytest
from playwright.sync_api import Browser, Page

from ..site import Site
from .faulty_site import Faults
from .page import ask, loaded_page, open_page, status
from .stand_in import MARKUP, WEIGHTS, real, small, visit, with_gpu, write_stand_in, wrong


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


REFUSALS: Mapping[str, tuple[Callable[[Faults], None], str]] = {
    "weights are missing": (
        lambda faults: faults.statuses.update({WEIGHTS: HTTPStatus.NOT_FOUND}),
        f"onnx/{WEIGHTS} is missing on the server (404). Publish the artifact again",
    ),
    "a graph is missing": (
        lambda faults: faults.statuses.update({"embed_tokens.onnx": HTTPStatus.NOT_FOUND}),
        "onnx/embed_tokens.onnx is missing on the server (404). Publish the artifact again",
    ),
    "the tokenizer is missing": (
        lambda faults: faults.statuses.update({"tokenizer.json": HTTPStatus.NOT_FOUND}),
        "tokenizer.json is missing on the server (404). Publish the artifact again",
    ),
    "the server is out of order": (
        lambda faults: faults.statuses.update({WEIGHTS: HTTPStatus.SERVICE_UNAVAILABLE}),
        f"onnx/{WEIGHTS} is not given by the server (503). Try again later",
    ),
    "a bit is wrong": (
        lambda faults: faults.altered.update({WEIGHTS: flipped}),
        f"onnx/{WEIGHTS} is not the file that manifest.json lists: its sha256 differs. Try again",
    ),
    "another page in place of a file": (
        lambda faults: faults.altered.update({WEIGHTS: lambda data: b"<html>"}),
        f"onnx/{WEIGHTS} is not the file that manifest.json lists: it has 6 bytes. Try again",
    ),
    "more than there should be": (
        lambda faults: faults.altered.update({WEIGHTS: lambda data: data + b"1"}),
        f"onnx/{WEIGHTS} is not the file that manifest.json lists: it is larger than ",
    ),
}


@pytest.mark.parametrize("fault", REFUSALS)
def test_a_file_that_does_not_come_as_listed_is_named(browser: Browser, site: Site, faults: Faults, fault: str) -> None:
    break_it, message = REFUSALS[fault]
    break_it(faults)
    assert wrong(open_page(browser, real(site))).startswith(message)


def test_what_follows_a_cut_connection_is_fetched_from_there(browser: Browser, site: Site, faults: Faults) -> None:
    faults.cuts[WEIGHTS] = [1_000_000, 1_000_000]
    page = loaded_page(browser, real(site))
    assert status(page).startswith("tiny is ready")
    said = [text for text in page.evaluate("seen.status") if "was cut" in text]
    assert [text.split(" after ")[1] for text in said] == [
        "1.0 of 5.8 MB. Trying again…",
        "2.0 of 5.8 MB. Trying again…",
    ]


def test_a_connection_that_stays_cut_is_said_and_can_be_tried_again(
    browser: Browser, site: Site, faults: Faults
) -> None:
    faults.cuts[WEIGHTS] = [3] + 10 * [0]
    page = open_page(browser, small(site))
    assert wrong(page) == (
        f"onnx/{WEIGHTS}: the connection was cut after 0.0 of 0.0 MB. Check the connection, then try again"
    )
    faults.clear()
    page.click("#again")
    page.wait_for_selector("#ask:enabled")
    assert status(page) == "small is ready on WebAssembly in float32"
    assert ask(page, "What now?").answer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bogus"}, "?dtype=bogus: small has no such precision. It has default, fp16, q4f16"),
        ({"dtype": "q4"}, "?dtype=q4: small has no such precision. It has default, fp16, q4f16"),
        ({"dtype": MARKUP}, f"?dtype={MARKUP}: small has no such precision."),
        ({"device": "cuda"}, "?device=cuda: there is no such device. Take webgpu or wasm"),
        ({"device": "webgpu"}, "?device=webgpu: this browser offers no WebGPU on this page. Take ?device=wasm"),
        ({"library": "https://example.com/x"}, "?library=https://example.com/x: code is loaded from http://127.0.0.1"),
        ({"wasm": "//example.com"}, "?wasm=//example.com: code is loaded from http://127.0.0.1"),
        ({"library": "../nowhere"}, "transformers.js cannot be loaded from http://127.0.0.1"),
        ({"model": "../model/onnx"}, "http://127.0.0.1"),
    ],
)
def test_an_address_that_asks_for_what_is_not_there_is_told(
    visitor: Page, site: Site, faults: Faults, options: Mapping[str, str], message: str
) -> None:
    with_gpu(faults, features=())
    parameters = {"model": "../small", "library": "../stand_in", **options}
    query = "&".join(f"{name}={value.replace(' ', '%20')}" for name, value in parameters.items())
    page = visit(visitor, f"{site.url}/demo/?{query}")
    assert wrong(page).startswith(message)
    assert page.title() == "Qwen3-VL in the browser"
    assert WEIGHTS not in faults.requested


def test_a_cdn_that_is_away_is_said(visitor: Page, site: Site) -> None:
    visitor.context.route("https://cdn.jsdelivr.net/**", lambda route: route.abort())
    page = visit(visitor, f"{site.url}/demo/?model=../small")
    assert wrong(page).startswith("transformers.js cannot be loaded from https://cdn.jsdelivr.net/npm/")


def test_the_pages_own_files_that_are_missing_are_said(visitor: Page, site: Site, faults: Faults) -> None:
    faults.statuses["artifact.js"] = HTTPStatus.NOT_FOUND
    assert wrong(visit(visitor, small(site))).startswith("The page's own files cannot be loaded")


def test_what_was_published_again_is_fetched_again_and_nothing_else(
    browser: Browser, site: Site, faults: Faults
) -> None:
    write_stand_in(site.root / "again")
    page = loaded_page(browser, small(site, "again"))

    def requested() -> set[str]:
        faults.requested.clear()
        page.reload()
        page.wait_for_selector("#ask:enabled")
        return {name for name in faults.requested if name in ("manifest.json", "config.json", WEIGHTS)}

    assert requested() == {"manifest.json"}
    write_stand_in(site.root / "again", b"WEIGHTS")
    assert requested() == {"manifest.json", WEIGHTS}
    assert requested() == {"manifest.json"}
    keys = "caches.keys().then((names) => Promise.all(names.map((n) => caches.open(n).then((c) => c.keys()))))"
    assert [len(kept) for kept in page.evaluate(f"{keys}.then((all) => all.map((k) => k.map((r) => r.url)))")] == [2]
