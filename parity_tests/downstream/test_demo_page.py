"""The demo page apart from its model: faults of networks, servers, addresses, files and GPUs, conversations, layout.

Every fault must be said, and must leave a way on. Faults of downloads are tried on transformers.js itself; all else is
on a stand-in that answers without a model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from qwen3vl_export.manifest import FileRecord
from qwen3vl_export.packaging.browsers import (
    LARGEST_IN_WASM,
    NEEDS_HALF,
    NO,
    TIGHT_IN_WASM,
    browser_support,
    weight_bytes,
)

from ..fixtures.changed_artifacts import changed
from ..fixtures.paths import DOCS
from .demo_page import DESKTOP, LAST, MILLISECONDS, PHONE, SMALL, answered, ask, drop, loaded_page, open_page, status
from .faulty_site import Faults, faulty
from .npm import node_modules
from .pictures import png
from .site import Site, serve

FOLDER = Path(__file__).parent
WEIGHTS = "vision_encoder.onnx_data"
MARKUP = '<img src=x onerror="document.title = 1">'


@pytest.fixture(scope="module")
def faults() -> Faults:
    return Faults()


@pytest.fixture(scope="module")
def site(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory, faults: Faults) -> Iterator[Site]:
    folders = {"demo": DOCS / "demo", "model": tiny_artifact, "node_modules": node_modules()}
    with serve(tmp_path_factory.mktemp("site"), folders, faulty(faults)) as served:
        library = served.root / "stand_in" / "dist"
        library.mkdir(parents=True)
        (library / "transformers.min.js").symlink_to(FOLDER / "transformers_stand_in.js")
        write_stand_in(served.root / "small")
        yield served


@pytest.fixture(scope="module")
def visitor(browser: Browser) -> Page:
    """A page for visits that neither keep nor need anything in the browser's cache."""
    return open_page(browser, "about:blank")


def visit(page: Page, url: str) -> Page:
    page.goto(url)
    return page


@pytest.fixture(autouse=True)
def no_faults(faults: Faults) -> None:
    faults.clear()


def write_stand_in(
    directory: Path, weights: bytes = b"weights", size: int | None = None, dtype: str = "float32"
) -> None:
    """An artifact as the stand-in loads it: a manifest and two files.

    Args:
        size: what the manifest says of the weights, in bytes.
        dtype: that of the default precision; further ones are float16.
    """
    (directory / "onnx").mkdir(parents=True, exist_ok=True)
    files = {"config.json": b"{}", f"onnx/{WEIGHTS}": weights}
    for name, data in files.items():
        (directory / name).write_bytes(data)
    records = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    if size is not None:
        records[f"onnx/{WEIGHTS}"]["bytes"] = size
    recipe = {"packaging": {"runtimes": ["transformers.js"]}, "dtype": dtype}
    precisions = {name: {"recipe": {**recipe, "dtype": "float16"}} for name in ("fp16", "q4f16")}
    manifest = {"name": "small", "recipe": recipe, "files": records, "precisions": precisions}
    (directory / "manifest.json").write_text(json.dumps(manifest))


def real(site: Site, **options: str) -> str:
    """The page's address with transformers.js and the tiny artifact."""
    further = "".join(f"&{name}={value}" for name, value in options.items())
    return f"{site.url}/demo/?model=../model&{site.packages}{further}"


def small(site: Site, model: str = "small", **options: str) -> str:
    """The page's address with the stand-in for transformers.js and an artifact made for it."""
    further = "".join(f"&{name}={value}" for name, value in options.items())
    return f"{site.url}/demo/?model=../{model}&library=../stand_in{further}"


def with_gpu(faults: Faults, features: tuple[str, ...] = ("shader-f16",), fallback: bool = False) -> None:
    """From now on workers see a GPU with these features, or see none if there are none."""
    adapter = f"{{ features: new Set({json.dumps(features)}), info: {{ isFallbackAdapter: {json.dumps(fallback)} }} }}"
    gpu = f"{{ requestAdapter: async () => ({adapter}) }}" if features else "undefined"
    fake = f"Object.defineProperty(WorkerNavigator.prototype, 'gpu', {{ value: {gpu} }});"
    faults.altered["worker.js"] = lambda data: data + fake.encode()


def wrong(page: Page) -> str:
    """What the page says is wrong, once it has said everything that it will say."""
    page.wait_for_selector("#status.wrong", timeout=MILLISECONDS)
    page.wait_for_timeout(200)
    assert page.is_visible("#again") and page.is_disabled("#ask")
    assert not page.evaluate("document.getElementById('progress').checkVisibility({ visibilityProperty: true })")
    return status(page)


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


HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(200)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>'


@pytest.mark.parametrize(
    ("name", "kind", "data"),
    [
        ("photo.heic", "image/heic", HEIC),
        ("drawing.svg", "image/svg+xml", SVG),
        ("broken.png", "image/png", b"\x89PNG\r\n\x1a\n" + bytes(50)),
        ("notes.txt", "text/plain", b"no picture"),
        ("nothing.png", "image/png", b""),
        (MARKUP, "image/png", b"no picture"),
    ],
)
def test_a_file_that_is_no_picture_is_refused_by_name(page: Page, name: str, kind: str, data: bytes) -> None:
    drop(page, data, name, kind)
    assert page.inner_text("#complaint") == (
        f"{name} is not a picture that this browser reads. Choose a JPEG, PNG, WebP or GIF file."
    )
    assert page.inner_text("#hint").startswith("Drop a picture here") and not page.is_visible("#remove")
    drop(page, red(), "red.png")
    assert page.inner_text("#complaint") == "" and page.inner_text("#name") == "red.png"
    page.click("#remove")


@pytest.fixture(scope="module")
def page(browser: Browser, site: Site) -> Page:
    """The page with the stand-in, loaded and never broken."""
    return loaded_page(browser, small(site))


def red() -> bytes:
    from PIL import Image

    return png(Image.new("RGB", (64, 32), "red"))


def test_a_conversation_stays_until_there_is_another_picture(page: Page) -> None:
    drop(page, red(), "first.png")
    assert ask(page, "a").answer == "image+a / 64x32"
    assert ask(page, "b").answer == "going on: image+a / image+a / 64x32 / b / 64x32"
    drop(page, red(), "second.png")
    assert page.inner_text(".divider >> nth=-1") == "Another picture: the model does not know what is above"
    assert ask(page, "c").answer == "image+c / 64x32"
    page.click("#remove")
    assert page.inner_text(".divider >> nth=-1") == "No picture any more: the model does not know what is above"
    assert ask(page, "d").answer == "d /"
    page.click("#clear")
    assert page.locator(".turn, .divider").count() == 0
    assert ask(page, "e").answer == "e /"
    page.click("#clear")


def test_a_picture_is_shrunk_to_what_there_is_memory_for(page: Page, site: Site) -> None:
    from PIL import Image

    drop(page, png(Image.new("RGB", (2048, 1024))), "large.png")
    turn = ask(page, "a")
    assert turn.answer == "image+a / 1448x724" and "the picture was shrunk to 1448" in turn.note
    page.click("#remove")
    page.click("#clear")
    cases = [[{"bytes": size}, device] for size in (TIGHT_IN_WASM, TIGHT_IN_WASM + 1) for device in ("wasm", "webgpu")]
    script = f"""async (cases) => {{
      const {{ mostPixels }} = await import('{site.url}/demo/page/choice.js');
      return cases.map((entry) => mostPixels(...entry));
    }}"""
    assert page.evaluate(script, cases) == [1 << 20, 1 << 20, 1 << 18, 1 << 20]


def test_what_people_and_models_write_is_text(page: Page) -> None:
    assert MARKUP in ask(page, MARKUP).answer
    assert page.locator("#turns img").count() == 0 and page.title() == "Qwen3-VL in the browser"
    turn = ask(page, "<|image_pad|>")
    assert turn.answer == "" and turn.note.startswith("A question cannot hold a token of the prompt")
    assert status(page).startswith("small is ready")
    assert ask(page, "still there?").answer
    page.click("#clear")


def test_an_answer_is_awaited_aloud_and_can_be_stopped(page: Page) -> None:
    page.fill("#question", "long")
    page.click("#ask")
    page.wait_for_selector(f"{LAST} >> .answer")
    assert page.get_attribute("#turns", "aria-busy") == "true"
    assert page.locator(".answer").evaluate_all("(all) => all.every((answer) => answer.textContent)")
    page.click("#stop")
    turn = answered(page)
    assert 5 <= len(turn.answer) < len("word " * 2000) and "tokens" in turn.note
    assert page.get_attribute("#turns", "aria-busy") == "false"
    page.click("#clear")


@pytest.mark.parametrize("question", ["fail", "hang"])
def test_after_a_run_that_failed_or_hangs_a_new_worker_answers(
    browser: Browser, site: Site, faults: Faults, question: str
) -> None:
    """On WebGPU, onnxruntime-web never returns from the run after one that failed."""
    with_gpu(faults)
    page = loaded_page(browser, small(site))
    drop(page, red())
    assert ask(page, "before").answer == "image+before / 64x32"
    if question == "hang":
        page.fill("#question", question)
        page.click("#ask")
        assert page.inner_text(".waiting").startswith("Reading the question…")
        page.click("#stop")
        page.click("#stop:has-text('Stop now')")
        assert answered(page).note == "Stopped"
    else:
        turn = ask(page, question)
        assert turn.answer == "" and turn.note.startswith(
            '[WebGPU] Kernel "[Guard] checked" failed. The model is loaded again.'
        )
    page.wait_for_selector("#ask:enabled")
    assert "Starting the model again…" in page.evaluate("seen.status")
    assert status(page) == "small is ready on WebGPU in float32"
    assert ask(page, "after").answer == "image+before / image+before / 64x32 / after / 64x32"


def test_every_text_has_a_live_region_or_a_label(page: Page) -> None:
    snapshot: dict[str, Any] = page.evaluate("""() => Object.fromEntries(
        [...document.querySelectorAll('input, select, progress, [role]')].map((node) => [node.id, [
          node.getAttribute('role') ?? '', node.labels?.[0]?.innerText ?? node.ariaLabel ?? '']]))""")
    assert snapshot["status"][0] == "status" and snapshot["complaint"][0] == "alert" and snapshot["turns"][0] == "log"
    assert all(snapshot[name][1] for name in ("file", "device", "dtype", "question", "turns"))


@pytest.mark.parametrize("size", [DESKTOP, PHONE, SMALL], ids=["desktop", "phone", "small"])
def test_nothing_moves_by_itself_while_it_loads_and_answers(
    browser: Browser, site: Site, size: tuple[int, int]
) -> None:
    page = loaded_page(browser, small(site), size)
    places = "['picture', 'form', 'ask', 'question'].map((id) => document.getElementById(id).getBoundingClientRect().y)"
    before = page.evaluate(places)
    drop(page, red())
    assert page.evaluate(places) == before
    ask(page, "What is this?")
    ask(page, "What else?")
    assert page.evaluate(places)[1:] == pytest.approx(before[1:], abs=0.9)  # a scrolled page may lie between pixels
    assert page.evaluate("seen.shift") < 0.01
