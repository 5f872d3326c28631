"""The demo page as a user drives it: open it, give it a picture, ask it, read what it says.

Knows the page's elements; nothing about models or servers.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Literal

from playwright.sync_api import Browser, Page, ViewportSize

DESKTOP, PHONE, SMALL = (1280, 900), (390, 844), (320, 568)
Scheme = Literal["light", "dark"]
MILLISECONDS = 120_000
READY = "document.querySelector('#status.wrong') || !document.getElementById('ask').disabled"
ANSWERED = "document.getElementById('stop').hidden && document.querySelector('.turn:last-of-type > :last-child')"
LAST = ".turn >> nth=-1"

# Every text of the status and of the answers, and how far the browser found that anything moved by itself.
RECORD = """
window.seen = { status: [], answer: [], shift: 0 };
addEventListener('DOMContentLoaded', () => {
  const watch = (id, look) => {
    const node = document.getElementById(id);
    new MutationObserver(look).observe(node, { childList: true, characterData: true, subtree: true });
    look();
  };
  watch('status', () => seen.status.push(document.getElementById('status').textContent));
  watch('turns', () => seen.answer.push([...document.querySelectorAll('.answer')].at(-1)?.textContent ?? ''));
});
new PerformanceObserver((list) => {
  for (const { value } of list.getEntries()) seen.shift += value;
}).observe({ type: 'layout-shift', buffered: true });
"""

DROP = """([name, type, bytes]) => {
  const data = Uint8Array.from(atob(bytes), (character) => character.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([data], name, { type }));
  for (const kind of ['dragenter', 'dragover', 'drop'])
    document.getElementById('drop').dispatchEvent(
      new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""

CONTRAST = """() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    const color = channels(getComputedStyle(node).backgroundColor);
    return color.length === 4 && color[3] === 0 ? behind(node.parentElement) : color;
  };
  const hasText = (node) => [...node.childNodes].some((child) => child.nodeValue?.trim());
  const texts = [...document.querySelectorAll('main *:not(option)')].filter(
    (node) => node.checkVisibility() && !node.disabled && hasText(node));
  return texts.concat([...document.querySelectorAll('input, select')]).map((node) => {
    const pair = [light(channels(getComputedStyle(node).color)), light(behind(node))].sort((a, b) => b - a);
    return [node.id || node.className || node.tagName, (pair[0] + 0.05) / (pair[1] + 0.05)];
  });
}"""


@dataclass(frozen=True)
class Turn:
    """What the page shows of a question: the answer, or what is said in place of it, and the line beneath."""

    answer: str
    note: str


def open_page(browser: Browser, url: str, size: tuple[int, int] = DESKTOP, scheme: Scheme = "light") -> Page:
    """The page from its first moment on, in a browser that has not been there."""
    viewport = ViewportSize(width=size[0], height=size[1])
    page = browser.new_context(viewport=viewport, color_scheme=scheme).new_page()
    page.add_init_script(RECORD)
    page.goto(url, timeout=MILLISECONDS)
    return page


def loaded_page(browser: Browser, url: str, size: tuple[int, int] = DESKTOP, scheme: Scheme = "light") -> Page:
    """The page after the model was loaded, or failed to load."""
    page = open_page(browser, url, size, scheme)
    page.wait_for_function(READY, timeout=MILLISECONDS)
    return page


def drop(page: Page, data: bytes, name: str = "picture.png", kind: str = "image/png") -> None:
    """Drop a file on the page and wait for what it says of it."""
    page.evaluate(DROP, [name, kind, base64.b64encode(data).decode()])
    page.wait_for_function(
        "(name) => document.getElementById('preview').alt === name || document.getElementById('complaint').textContent",
        arg=name,
    )


def ask(page: Page, question: str) -> Turn:
    """Ask and wait for the end of the answer."""
    page.fill("#question", question)
    page.click("#ask")
    return answered(page)


def answered(page: Page) -> Turn:
    page.wait_for_function(ANSWERED, timeout=MILLISECONDS)
    turn = page.locator(LAST)
    answers = turn.locator(".answer")
    return Turn(answers.inner_text() if answers.count() else "", turn.locator(".facts, .wrong").inner_text())


def status(page: Page) -> str:
    text: str = page.inner_text("#status")
    return text
