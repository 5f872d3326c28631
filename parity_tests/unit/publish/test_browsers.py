"""What an artifact says about browsers: in its card, in `inspect`, and to whom asks for a page. Chromium is asked in
`parity_tests/downstream/test_browser_graphs.py`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qwen3vl_export.artifact import open_artifact
from qwen3vl_export.errors import PublishError
from qwen3vl_export.manifest import FileRecord
from qwen3vl_export.packaging.browsers import (
    LARGEST_IN_WASM,
    TIGHT_IN_WASM,
    WASM,
    WEBGPU,
    browser_support,
    describe,
    may_load,
    weight_bytes,
)
from qwen3vl_export.publishing.demo import demo_files, unloadable_precisions
from qwen3vl_export.publishing.model_card import browsers

from ...fixtures.changed_artifacts import changed
from ...fixtures.commands import invoke


@pytest.mark.parametrize(
    ("dtype", "wasm", "webgpu"),
    [
        ("float32", "yes", "yes"),
        ("float16", "yes", "yes, with `shader-f16`"),
        (
            "bfloat16",
            "no: weights in bfloat16, which only Node casts",
            "no: weights in bfloat16, which only Node casts",
        ),
    ],
)
def test_a_browser_is_said_to_load_what_it_casts(tiny_artifact: Path, dtype: str, wasm: str, webgpu: str) -> None:
    artifact = changed(tiny_artifact, dtype=dtype)
    assert browser_support(artifact) == {WASM: wasm, WEBGPU: webgpu}
    assert describe(artifact) == f"default: {WASM} {wasm}, {WEBGPU} {webgpu}"
    assert f"| default (`fp32` in transformers.js) | {wasm} | {webgpu} |" in list(browsers(artifact))


def test_webgpu_is_said_to_take_no_cache_in_8_bits(tiny_artifact: Path) -> None:
    quantization = open_artifact(tiny_artifact, check=False).manifest.recipe["quantization"]
    support = browser_support(changed(tiny_artifact, quantization={**quantization, "cache": {"method": "int8"}}))
    assert support == {WASM: "yes", WEBGPU: "no: a cache in 8 bits, which only WebAssembly takes"}


def test_weights_that_fill_the_memory_of_webassembly_are_said_not_to_load_there(tiny_artifact: Path) -> None:
    name = "onnx/decoder_model_merged.onnx_data"
    smaller = weight_bytes(open_artifact(tiny_artifact, check=False))
    large = "weights above 3.5 GiB"
    for count, wasm, webgpu in (
        (TIGHT_IN_WASM - smaller, "yes", "yes"),
        (TIGHT_IN_WASM, "yes, for pictures up to about 512x512 pixels: weights above 2 GiB", "yes"),
        (LARGEST_IN_WASM - smaller, "yes, for pictures up to about 512x512 pixels: weights above 2 GiB", "yes"),
        (LARGEST_IN_WASM, f"no: {large}", f"untested: {large}"),
    ):
        support = browser_support(changed(tiny_artifact, {name: FileRecord(count, "0" * 64)}))
        assert support[WASM].startswith(wasm) and support[WEBGPU].startswith(webgpu) and may_load(support)


def test_nothing_is_said_of_an_artifact_that_is_not_for_browsers(tiny_artifact: Path) -> None:
    artifact = changed(tiny_artifact, packaging={"runtimes": ["onnxruntime"]})
    assert (describe(artifact), list(browsers(artifact)), may_load(browser_support(artifact))) == ("", [], False)


def test_a_page_for_what_no_browser_loads_is_refused(tiny_artifact: Path) -> None:
    with pytest.raises(PublishError, match=r"loads in no browser \(no: weights in bfloat16, .*--precision web"):
        demo_files(changed(tiny_artifact, dtype="bfloat16"))
    assert demo_files(changed(tiny_artifact, dtype="float16"))


def test_a_precision_that_the_page_cannot_load_is_named(tiny_artifact: Path) -> None:
    artifact = changed(tiny_artifact, dtype="bfloat16")
    manifest = artifact.manifest
    precisions = {
        name: {"recipe": {**manifest.recipe, "dtype": dtype}, "graphs": manifest.graphs}
        for name, dtype in (("fp16", "float16"), ("int8", "bfloat16"))
    }
    mixed = replace(artifact, manifest=replace(manifest, precisions=precisions))
    assert demo_files(mixed)
    reason = "(no: weights in bfloat16, which only Node casts)"
    assert list(unloadable_precisions(mixed)) == [
        f"warning: the page cannot load the default precision {reason}",
        f"warning: the page cannot load ?dtype=int8 {reason}",
    ]
    assert list(unloadable_precisions(changed(tiny_artifact))) == []


def test_inspect_tells_it(tiny_artifact: Path) -> None:
    shown = " ".join(invoke("inspect", str(tiny_artifact)).stdout.split())
    assert f"in browsers default: {WASM} yes, {WEBGPU} yes" in shown
