"""Chromium with WebGPU on a machine without a GPU: adapters in software, and the one of their features that is hidden.

On both adapters onnxruntime's attention with `subgroups` is wrong by itself, from 32 tokens on: logits are off by up to
10, while short answers still read right. So pages see no subgroups (`HIDE_SUBGROUPS`), and tests compare numbers.

Knows Chromium's switches; nothing about pages.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .npm import CHROMIUM, program

if TYPE_CHECKING:
    from playwright.sync_api import Browser


DISGUISE = Path(__file__).with_name("disguise.c")


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

NATIVE = ("--enable-unsafe-webgpu", "--enable-features=Vulkan,WebGPU", "--use-vulkan=native", "--use-angle=vulkan")
LAYER = "VK_LAYER_disguise"

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


def disguised(icd: Path, folder: Path) -> Adapter:
    """Another Vulkan driver of a CPU, behind a layer that makes Chromium take it (`disguise.c`).

    Args:
        icd: the file that names the driver.
        folder: where the layer is built, with gcc and the headers of Vulkan.
    """
    library = folder / "libdisguise.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", str(DISGUISE), "-o", str(library)], check=True)
    layer = {"name": LAYER, "type": "GLOBAL", "library_path": str(library), "api_version": "1.3.0"}
    layer |= {"implementation_version": "1", "description": "SwiftShader's ids, no subgroups"}
    (folder / f"{LAYER}.json").write_text(json.dumps({"file_format_version": "1.2.0", "layer": layer}))
    variables = {"VK_ICD_FILENAMES": str(icd), "VK_LAYER_PATH": str(folder), "VK_INSTANCE_LAYERS": LAYER}
    return Adapter(NATIVE, variables)


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
