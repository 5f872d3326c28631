"""Artifacts that load in an instant, and the addresses and GPUs that the demo page is given."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from playwright.sync_api import Page

from ..site import Site
from .faulty_site import Faults
from .page import MILLISECONDS, status

WEIGHTS = "vision_encoder.onnx_data"
MARKUP = '<img src=x onerror="document.title = 1">'


def visit(page: Page, url: str) -> Page:
    page.goto(url)
    return page


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
