"""The demo page in a real browser: Chromium, headless, driven as a user would, with transformers.js from npm."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from qwen3vl_export.publishing import publish
from qwen3vl_export.runtime import Image, Qwen3VL

from ..fixtures.paths import DOCS
from ..fixtures.proven import prove
from ..harness.cases.matrix import Case
from ..harness.sides.bench import Bench
from ..harness.verify import open_bench
from .cases import one_prompt_cases, pictures_of
from .demo.page import CONTRAST, DESKTOP, LAST, PHONE, SMALL, Scheme, ask, drop, loaded_page, status
from .npm import node_modules
from .pictures import png
from .site import Site, serve

DEMO = DOCS / "demo"
# Sizes that are multiples of 32: the pictures are not resized.
EXACT = ("as-traced-24x24", "wide-512x128")


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


@pytest.fixture(scope="module")
def page(browser: Browser, site: Site) -> Page:
    return loaded_page(browser, demo_url(site))


def case_named(name: str) -> Case:
    return next(case for case in one_prompt_cases(max_images=1) if case.name == name)


def expected(bench: Bench, case: Case) -> str:
    """PyTorch's answer as a text."""
    greedy = bench.reference.generate(bench.inputs(case), bench.matrix.new_tokens, stop=True)
    text: str = bench.prompt_reference.tokenizer.decode(greedy.ids[0], skip_special_tokens=True)
    return text


def file_of(bench: Bench, case: Case) -> bytes:
    return png(pictures_of(bench.prompts(case)[0])[0])


def test_it_shows_how_far_loading_is_and_where_the_model_runs(page: Page) -> None:
    states = page.evaluate("seen.status")
    assert states[0] == "Starting…" and "Loading tiny…" in states and "Preparing the model…" in states
    assert status(page) == "tiny is ready on WebAssembly in float32"
    assert page.input_value("#device") == "wasm" and page.input_value("#dtype") == "default"


@pytest.mark.parametrize("name", EXACT)
def test_a_dropped_picture_is_answered_as_pytorch_does(page: Page, bench: Bench, name: str) -> None:
    case = case_named(name)
    drop(page, file_of(bench, case), f"{name}.png")
    page.evaluate("seen.answer.length = 0")
    turn = ask(page, case.ask)
    assert turn.answer == expected(bench, case)
    assert "tokens/s" in turn.note
    texts = [text for text in page.evaluate("seen.answer") if text and turn.answer.startswith(text)]
    assert len(set(texts)) >= 3 and all(text.startswith(before) for before, text in pairwise(texts))


def test_a_question_without_a_picture_is_answered_as_pytorch_does(page: Page, bench: Bench) -> None:
    case = next(case for case in one_prompt_cases(max_images=0) if case.name == "text-only-long")
    if page.is_visible("#remove"):
        page.click("#remove")
    assert ask(page, case.ask).answer == expected(bench, case)


def test_further_questions_are_answered_in_view_of_the_conversation(
    page: Page, bench: Bench, tiny_artifact: Path, tmp_path: Path
) -> None:
    """Each answer is the one that this package's runtime gives to the whole conversation."""
    picture = tmp_path / "conversation.png"
    picture.write_bytes(file_of(bench, case_named(EXACT[0])))
    model = Qwen3VL.load(tiny_artifact)
    drop(page, picture.read_bytes(), picture.name)
    messages: list[dict[str, object]] = []
    for question in ("Describe the picture.", "How many shapes are there?", "Is this a photograph or a drawing?"):
        image = [] if messages else [{"type": "image", "image": Image(picture)}]
        messages.append({"role": "user", "content": [*image, {"type": "text", "text": question}]})
        answer = "".join(model.stream(messages))
        assert ask(page, question).answer == answer
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})


def test_the_keyboard_is_enough(page: Page, tmp_path: Path, bench: Bench) -> None:
    case = case_named(EXACT[0])
    picture = tmp_path / "keyboard.png"
    picture.write_bytes(file_of(bench, case))
    page.on("filechooser", lambda chooser: None)  # without a listener the dialog may open too late
    page.evaluate("document.activeElement.blur()")
    page.focus("#file")
    assert page.evaluate("getComputedStyle(document.getElementById('drop')).outlineStyle") == "solid"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(picture)
    page.wait_for_function("document.getElementById('preview').alt === 'keyboard.png'")
    focused = []
    for _ in range(3):
        page.keyboard.press("Tab")
        focused.append(page.evaluate("document.activeElement.id"))
    assert focused == ["remove", "clear", "question"]
    page.keyboard.press("Control+A")
    page.keyboard.type(case.ask)
    page.keyboard.press("Enter")
    page.wait_for_selector(f"{LAST} >> .facts")
    assert page.inner_text(f"{LAST} >> .answer") == expected(bench, case)
    assert page.evaluate("document.activeElement.id") == "question"


def test_it_fits_and_can_be_read(page: Page, bench: Bench, tmp_path: Path) -> None:
    """At each size, light and dark, with answers, a picture and what divides conversations."""
    for name in ("first.png", "second.png"):
        drop(page, file_of(bench, case_named(EXACT[0])), name)
        ask(page, "What is this?")
    schemes: tuple[Scheme, ...] = ("light", "dark")
    for size, scheme in product((DESKTOP, PHONE, SMALL), schemes):
        page.set_viewport_size({"width": size[0], "height": size[1]})
        page.emulate_media(color_scheme=scheme)
        assert page.is_visible(".divider >> nth=-1") and page.is_visible("#remove")
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        heights = page.evaluate(
            "[...document.querySelectorAll('button, select, #question')].map((e) => e.offsetHeight)"
        )
        assert all(height >= 44 for height in heights if height)  # pixels a finger needs
        assert [name for name, contrast in page.evaluate(CONTRAST) if contrast < 4.5] == []  # WCAG AA
        assert len(page.screenshot(path=tmp_path / f"{size[0]}-{scheme}.png", full_page=True)) > 10_000


def test_a_published_directory_holds_its_own_page(
    browser: Browser, site: Site, bench: Bench, tiny_artifact: Path
) -> None:
    """`publish --demo`: the page uses the model in its own directory, without a parameter."""
    case = case_named(EXACT[0])
    out = site.root / "published"
    publish(prove(tiny_artifact, site.root / "proven"), str(out), demo=True, log=lambda line: None)
    page = loaded_page(browser, f"{site.url}/published/?{site.packages}")
    assert status(page).startswith("tiny is ready")
    drop(page, file_of(bench, case))
    assert ask(page, case.ask).answer == expected(bench, case)


def test_a_model_that_is_not_there_is_said(browser: Browser, site: Site) -> None:
    page = loaded_page(browser, demo_url(site, "nowhere"))
    assert status(page).startswith(f"{site.url}/nowhere/ has no manifest.json (404).")
    assert page.is_disabled("#ask")
