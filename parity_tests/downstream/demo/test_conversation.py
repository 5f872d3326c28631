"""Pictures, questions and answers on a demo page that is loaded, and that nothing moves by itself."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from qwen3vl_export.packaging.browsers import TIGHT_IN_WASM

from ..pictures import png
from ..site import Site
from .faulty_site import Faults
from .page import DESKTOP, LAST, PHONE, SMALL, answered, ask, drop, loaded_page, status
from .stand_in import MARKUP, small, with_gpu


def red() -> bytes:
    from PIL import Image

    return png(Image.new("RGB", (64, 32), "red"))


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
