"""The demo page in a real browser: Chromium, headless, driven as a user would, with transformers.js from npm."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, ViewportSize

from qwen3vl_export.publishing import publish

from ..fixtures.paths import DOCS
from ..fixtures.proven import prove
from ..harness.cases.matrix import Case
from ..harness.sides.bench import Bench
from ..harness.verify import open_bench
from .cases import one_prompt_cases, pictures_of
from .npm import node_modules
from .pictures import png
from .site import Site, serve

DEMO = DOCS / "demo"
DESKTOP, PHONE = (1280, 900), (390, 844)
Scheme = Literal["light", "dark"]
READY = "!document.getElementById('ask').disabled || document.querySelector('#status.wrong')"
ANSWERED = "document.getElementById('speed').textContent || document.querySelector('#status.wrong')"
MILLISECONDS = 120_000
# Sizes that are multiples of 32: the pictures are not resized.
EXACT = ("as-traced-24x24", "wide-512x128")

RECORD = """
window.seen = { status: [], answer: [] };
addEventListener('DOMContentLoaded', () => {
  for (const id of Object.keys(seen)) {
    const node = document.getElementById(id);
    const look = () => seen[id].push(node.textContent);
    new MutationObserver(look).observe(node, { childList: true, characterData: true, subtree: true });
  }
});
"""

DROP = """([id, bytes]) => {
  const data = Uint8Array.from(atob(bytes), (character) => character.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([data], 'picture.png', { type: 'image/png' }));
  for (const kind of ['dragenter', 'dragover', 'drop'])
    document.getElementById(id).dispatchEvent(
      new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""

CONTRAST = """(ids) => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    const color = channels(getComputedStyle(node).backgroundColor);
    return color.length === 4 && color[3] === 0 ? behind(node.parentElement) : color;
  };
  return ids.map((id) => {
    const node = document.getElementById(id);
    const pair = [light(channels(getComputedStyle(node).color)), light(behind(node))].sort((a, b) => b - a);
    return (pair[0] + 0.05) / (pair[1] + 0.05);
  });
}"""


@pytest.fixture(scope="module")
def site(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folders = {"demo": DEMO, "model": tiny_artifact, "node_modules": node_modules()}
    with serve(tmp_path_factory.mktemp("site"), folders) as served:
        yield served


def demo_url(site: Site, model: str = "model") -> str:
    """The page's address, for one of the site's folders."""
    return f"{site.url}/demo/?model=../{model}&{site.packages}"


@pytest.fixture(scope="module")
def bench(tiny_artifact: Path) -> Bench:
    return open_bench(tiny_artifact)


def open_page(browser: Browser, url: str, size: tuple[int, int] = DESKTOP, scheme: Scheme = "light") -> Page:
    """The page after the model was loaded, or failed to load."""
    viewport = ViewportSize(width=size[0], height=size[1])
    page = browser.new_context(viewport=viewport, color_scheme=scheme).new_page()
    page.add_init_script(RECORD)
    page.goto(url, timeout=MILLISECONDS)
    page.wait_for_function(READY, timeout=MILLISECONDS)
    return page


@pytest.fixture(scope="module")
def page(browser: Browser, site: Site) -> Page:
    return open_page(browser, demo_url(site))


def expected(bench: Bench, case: Case) -> str:
    """PyTorch's answer as a text."""
    greedy = bench.reference.generate(bench.inputs(case), bench.matrix.new_tokens, stop=True)
    text: str = bench.prompt_reference.tokenizer.decode(greedy.ids[0], skip_special_tokens=True)
    return text


def drop(page: Page, bench: Bench, case: Case) -> None:
    data = base64.b64encode(png(pictures_of(bench.prompts(case)[0])[0])).decode()
    page.evaluate(DROP, ["drop", data])
    page.wait_for_selector("#preview:not([hidden])")


def answer(page: Page) -> str:
    page.wait_for_function(ANSWERED, timeout=MILLISECONDS)
    assert "wrong" not in page.inner_text("#status")
    text: str = page.inner_text("#answer")
    return text


def test_it_shows_how_far_loading_is(page: Page) -> None:
    states = page.evaluate("seen.status")
    assert any(state.startswith("Loading the model: ") and state.endswith(" MB") for state in states)
    assert page.inner_text("#status").startswith("model is ready (loaded in ")


@pytest.mark.parametrize("name", EXACT)
def test_a_dropped_picture_is_answered_as_pytorch_does(page: Page, bench: Bench, name: str) -> None:
    case = next(case for case in one_prompt_cases(max_images=1) if case.name == name)
    drop(page, bench, case)
    page.fill("#question", case.ask)
    page.evaluate("seen.answer.length = 0")
    page.click("#ask")
    assert answer(page) == expected(bench, case)
    texts = [text for text in page.evaluate("seen.answer") if text]
    assert len(texts) >= 3 and all(text.startswith(before) for before, text in pairwise(texts))
    assert "tokens/s" in page.inner_text("#speed")


def test_a_question_without_a_picture_is_answered_as_pytorch_does(page: Page, bench: Bench) -> None:
    case = next(case for case in one_prompt_cases(max_images=0) if case.name == "text-only-long")
    if page.is_visible("#remove"):
        page.click("#remove")
    page.fill("#question", case.ask)
    page.click("#ask")
    assert answer(page) == expected(bench, case)


def test_the_keyboard_is_enough(browser: Browser, site: Site, tmp_path: Path, bench: Bench) -> None:
    case = next(case for case in one_prompt_cases(max_images=1) if case.images)
    picture = tmp_path / "picture.png"
    picture.write_bytes(png(pictures_of(bench.prompts(case)[0])[0]))
    page = open_page(browser, demo_url(site))
    page.on("filechooser", lambda chooser: None)  # without a listener the dialog may open too late
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    assert page.evaluate("getComputedStyle(document.getElementById('drop')).outlineStyle") == "solid"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(picture)
    page.wait_for_selector("#preview:not([hidden])")
    focused = []
    for _ in range(2):
        page.keyboard.press("Tab")
        focused.append(page.evaluate("document.activeElement.id"))
    assert focused == ["remove", "question"]
    page.keyboard.press("Control+A")
    page.keyboard.type(case.ask)
    page.keyboard.press("Enter")
    assert answer(page) == expected(bench, case)
    assert page.evaluate("document.activeElement.id") == "question"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_fits_and_can_be_read(
    browser: Browser, site: Site, bench: Bench, size: tuple[int, int], scheme: Scheme, tmp_path: Path
) -> None:
    page = open_page(browser, demo_url(site), size, scheme)
    drop(page, bench, next(case for case in one_prompt_cases(max_images=1) if case.name == "photograph-451x300"))
    page.click("#ask")
    assert answer(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    heights = page.evaluate("['ask', 'question', 'remove'].map((id) => document.getElementById(id).offsetHeight)")
    assert min(heights) >= 44  # pixels a finger needs
    contrasts = page.evaluate(CONTRAST, ["status", "answer", "speed", "ask", "remove", "question"])
    assert min(contrasts) >= 4.5  # WCAG AA
    assert len(page.screenshot(path=tmp_path / "page.png", full_page=True)) > 10_000


def test_a_published_directory_holds_its_own_page(
    browser: Browser, site: Site, bench: Bench, tiny_artifact: Path
) -> None:
    """`publish --demo`: the page uses the model in its own directory, without a parameter."""
    case = next(case for case in one_prompt_cases(max_images=1) if case.name == EXACT[0])
    out = site.root / "published"
    publish(prove(tiny_artifact, site.root / "proven"), str(out), demo=True, log=lambda line: None)
    page = open_page(browser, f"{site.url}/published/?{site.packages}")
    assert page.inner_text("#status").startswith("published is ready")
    drop(page, bench, case)
    page.fill("#question", case.ask)
    page.click("#ask")
    assert answer(page) == expected(bench, case)


def test_a_model_that_is_not_there_is_said(browser: Browser, site: Site) -> None:
    page = open_page(browser, demo_url(site, "nowhere"))
    assert page.inner_text("#status").startswith("Something went wrong: ")
    assert page.is_disabled("#ask")
