"""Chromium with WebGPU on a machine without a GPU: adapters in software, and the one of their features that is hidden.

On both adapters onnxruntime's attention with `subgroups` is wrong by itself, from 32 tokens on: logits are off by up to
10, while short answers still read right. So pages see no subgroups (`HIDE_SUBGROUPS`), and tests compare numbers.

Knows Chromium's switches; nothing about pages.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .npm import CHROMIUM, program

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@dataclass(frozen=True)
class Adapter:
    """How Chromium gets a WebGPU adapter.

    Attributes:
        switches: of its command line.
        environment: variables that it needs besides.
    """

    switches: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


SWIFTSHADER = Adapter(  # in Chromium; it has no float16 (`shader-f16`)
    (
        "--enable-unsafe-webgpu",
        "--use-webgpu-adapter=swiftshader",
        "--enable-features=Vulkan,WebGPU",
        "--use-vulkan=swiftshader",
        "--use-angle=swiftshader",
    )
)

HIDE_SUBGROUPS = """
if (globalThis.GPUAdapter) {
  const { prototype } = GPUAdapter;
  const { get } = Object.getOwnPropertyDescriptor(prototype, 'features');
  const shown = (features) => new Set([...features].filter((name) => !name.startsWith('subgroup')));
  Object.defineProperty(prototype, 'features', { get() { return shown(get.call(this)); } });
  const { requestDevice } = prototype;
  prototype.requestDevice = function (options = {}) {
    return requestDevice.call(this, { ...options, requiredFeatures: [...shown(options.requiredFeatures ?? [])] });
  };
}
"""


@contextmanager
def open_browser(adapter: Adapter = SWIFTSHADER) -> Iterator[Browser]:
    """Chromium, headless."""
    from playwright.sync_api import sync_playwright

    path = program("chromium", "chromium-browser", "google-chrome", install=CHROMIUM)
    environment: dict[str, str | float | bool] = {**os.environ, **adapter.environment}
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=path, args=["--no-sandbox", *adapter.switches], env=environment
        )
        yield browser
        browser.close()
