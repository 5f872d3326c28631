"""What a build writes: the contract's signature, exact weights stored once, equal bytes, guards that hold."""

from __future__ import annotations

import errno
import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch.fx import config as fx_config

from parity_tests.fixtures import traces
from parity_tests.fixtures.paths import ROOT, TINY
from qwen3vl_export import contract
from qwen3vl_export.artifact import open_artifact
from qwen3vl_export.errors import ArtifactError, BuildError
from qwen3vl_export.exporter import skeletons, weights
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.exporter.checkpoint.names import HEAD, TABLE, members_of
from qwen3vl_export.exporter.pipeline import build
from qwen3vl_export.exporter.submodules import build_submodule
from qwen3vl_export.exporter.trace import trace
from qwen3vl_export.manifest import MANIFEST
from qwen3vl_export.promise import second_decoder
from qwen3vl_export.recipe import load_recipe


def test_no_placeholder_and_no_function_is_left(tiny_artifact: Path) -> None:
    for path in sorted((tiny_artifact / "onnx").glob("*.onnx")):
        model = onnx.load(path, load_external_data=False)
        assert not model.functions
        assert {opset.domain for opset in model.opset_import} <= {"", "com.microsoft"}


def test_weights_are_the_checkpoints_to_the_last_bit(tiny_artifact: Path) -> None:
    """Every external tensor equals one of the checkpoint, transposed or reshaped, or several one below the other, and
    none of those is left out."""
    checkpoint = open_checkpoint(str(TINY))
    stored = {name: checkpoint.read(name).float().numpy() for name in checkpoint.tensors}
    used = set()
    for path in sorted((tiny_artifact / "onnx").glob("*.onnx")):
        model = onnx.load(path)
        external = {t.name: t for t in onnx.load(path, load_external_data=False).graph.initializer if t.external_data}
        for tensor in model.graph.initializer:
            if tensor.name not in external:
                continue
            array = numpy_helper.to_array(tensor)
            suffixes = members_of(tensor.name) if tensor.name != HEAD else (TABLE,)
            names = [next(name for name in stored if name.endswith(suffix)) for suffix in suffixes]
            expected = np.concatenate([stored[name] for name in names])
            same_layout = expected.size == array.size and np.array_equal(expected.reshape(array.shape), array)
            assert same_layout or np.array_equal(expected.T, array), f"{path.name}: {tensor.name}"
            used.update(names)
    assert used == set(stored)


def test_both_embedding_heads_read_the_same_bytes(tiny_artifact: Path) -> None:
    places = []
    for name in (contract.EMBED_TOKENS, contract.EMBEDDINGS):
        model = onnx.load(tiny_artifact / "onnx" / f"{name}.onnx", load_external_data=False)
        table = next(t for t in model.graph.initializer if t.external_data)
        places.append({entry.key: entry.value for entry in table.external_data})
    assert places[0] == places[1] and places[0]["location"] == "embed_tokens.onnx_data"


def test_all_buckets_read_the_same_weight_file(tiny_buckets_artifact: Path, tiny_artifact: Path) -> None:
    data = sorted(path.name for path in (tiny_buckets_artifact / "onnx").glob("*.onnx_data"))
    assert data == ["decoder_model_merged.onnx_data", "embed_tokens.onnx_data", "vision_encoder.onnx_data"]
    size = (tiny_buckets_artifact / "onnx" / "vision_encoder.onnx_data").stat().st_size
    assert size == (tiny_artifact / "onnx" / "vision_encoder.onnx_data").stat().st_size


@pytest.mark.parametrize("tracer", [trace, traces.trace], ids=["traced-anew", "traced-by-another-test"])
def test_a_rebuild_is_byte_identical(
    tracer: Callable[..., ir.Model], tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(skeletons, "trace", tracer)
    again = build(load_recipe(ROOT / "recipes" / "tiny.yaml"), out=tmp_path / "again", log=lambda line: None)
    first = {name: record.sha256 for name, record in open_artifact(tiny_artifact).manifest.files.items()}
    assert {name: record.sha256 for name, record in open_artifact(again).manifest.files.items()} == first
    assert (again / MANIFEST).read_bytes() == (tiny_artifact / MANIFEST).read_bytes()


def test_kept_stages_run(tmp_path: Path) -> None:
    out = build(load_recipe("tiny-fixed"), out=tmp_path / "out", keep_stages=True, log=lambda line: None)
    grid = np.array([[1, 24, 24]])
    pixels = np.random.default_rng(0).standard_normal((576, 1536), np.float32)
    feeds = {"pixel_values": pixels, "image_grid_thw": grid}
    stages = ("traced", "simplified", "optimized", "stored")
    sessions = [session(out / "stages" / stage / "vision_encoder.onnx") for stage in stages]
    features = [encoder.run(None, feeds)[0] for encoder in sessions]
    assert len(features) == 4
    assert max(np.abs(features[0] - later).max() for later in features[1:]) < 1e-4


def test_the_manifest_tells_each_stage(tiny_artifact: Path) -> None:
    manifest = json.loads((tiny_artifact / MANIFEST).read_text())
    for name, graph in manifest["graphs"].items():
        stages = [record["stage"] for record in graph["stages"]]
        assert stages == ["traced", "simplified", "optimized", "stored", "written"], name
        assert graph["stages"][0]["nodes"] >= graph["stages"][-1]["nodes"] > 0
        assert all(sum(record["ops"].values()) == record["nodes"] for record in graph["stages"])
    assert manifest["checkpoint"]["source"] == "./checkpoints/tiny" and manifest["tools"]["torch"]


def test_a_fixed_recipe_writes_its_size_into_the_processor_settings(tiny_fixed_artifact: Path) -> None:
    settings = json.loads((tiny_fixed_artifact / "preprocessor_config.json").read_text())
    assert settings["size"] == {"shortest_edge": 384 * 384, "longest_edge": 384 * 384}


def session(path: Path) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options)


@pytest.mark.parametrize(
    ("grid", "rows", "message"),
    [
        ([[1, 16, 18]], 256, "does not add up"),
        ([[1, 16, 16], [1, 2, 2]], 256, "does not add up"),
        ([[1, 15, 16]], 240, "multiples of 2"),
        ([[1, 16, 15]], 240, "multiples of 2"),
        ([[0, 16, 16]], 0, "positive"),
        ([[1, -16, -16]], 256, "positive"),
        ([[-1, -16, 16]], 256, "positive"),
        (np.zeros((0, 3)), 0, "at least one row"),
    ],
)
def test_the_vision_graph_refuses_impossible_grids_by_itself(
    tiny_artifact: Path, grid: Any, rows: int, message: str
) -> None:
    feeds = {"pixel_values": np.zeros((rows, 1536), np.float32), "image_grid_thw": np.array(grid, np.int64)}
    with pytest.raises(Exception, match=f"guard: [^']*{message}"):
        session(tiny_artifact / "onnx" / "vision_encoder.onnx").run(None, feeds)


@pytest.mark.parametrize("rows", [0, 3, 5])
def test_the_embedding_graph_refuses_another_number_of_features(tiny_artifact: Path, rows: int) -> None:
    artifact = open_artifact(tiny_artifact)
    ids = np.full((1, 4), artifact.manifest.facts.image_token_id)
    features = np.zeros((rows, artifact.manifest.facts.wide_size), np.float32)
    with pytest.raises(Exception, match="guard: the number of image and video pad tokens"):
        session(tiny_artifact / "onnx" / "embeddings.onnx").run(None, {"input_ids": ids, "image_features": features})


def test_a_bound_encoder_refuses_every_other_grid(tiny_fixed_artifact: Path) -> None:
    encoder = session(open_artifact(tiny_fixed_artifact).graph_path(contract.VISION_ENCODER))
    feeds = {"pixel_values": np.zeros((576, 1536), np.float32), "image_grid_thw": np.array([[1, 12, 48]])}
    with pytest.raises(Exception, match="guard: this encoder takes one image of 24x24 patches"):
        encoder.run(None, feeds)


def test_disk_full_while_weights_are_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> float:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(weights, "stream_piece", full)
    with pytest.raises(BuildError, match="disk full, nothing was written"):
        build(load_recipe("tiny"), out=tmp_path / "out", log=lambda line: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["onnx/vision_encoder.onnx_data", "onnx/embeddings.onnx", "tokenizer.json"])
def test_one_flipped_byte_anywhere_is_noticed(tiny_artifact: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(tiny_artifact, tmp_path / "copy"))
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(ArtifactError, match=f"{name}: was altered, its sha256 differs"):
        open_artifact(copy)


def test_optional_logits_count_keeps_the_last_rows(tiny_artifact: Path) -> None:
    artifact = open_artifact(tiny_artifact)
    facts = artifact.manifest.facts
    graph = contract.decoder(facts)
    decoder = session(artifact.root / second_decoder(artifact.manifest.graphs[contract.DECODER]["file"]))
    generator = np.random.default_rng(0)
    feeds: dict[str, Any] = {
        "inputs_embeds": generator.standard_normal((2, 6, facts.wide_size), np.float32),
        "attention_mask": np.ones((2, 6), np.int64),
        "position_ids": np.broadcast_to(np.arange(6), (3, 2, 6)).copy(),
    }
    empty = np.zeros((2, facts.num_key_value_heads, 0, facts.head_dim), np.float32)
    feeds |= {tensor.name: empty for tensor in graph.inputs if tensor.name.startswith("past")}
    every = decoder.run(["logits"], feeds)[0]
    last = decoder.run(["logits"], {**feeds, "num_logits_to_keep": np.array(2, np.int64)})[0]
    assert every.shape == (2, 6, facts.vocab_size) and last.shape == (2, 2, facts.vocab_size)
    assert np.allclose(every[:, -2:], last, atol=1e-5)
    assert torch.equal(torch.tensor(every).argmax(-1)[:, -2:], torch.tensor(last).argmax(-1))


def test_nothing_in_the_tracers_notes_names_this_machine() -> None:
    checkpoint = open_checkpoint(str(TINY))
    submodule = build_submodule(checkpoint, contract.EMBEDDINGS, "ort", torch.float32)
    notes = ir.to_proto(trace(submodule, torch.float32)).SerializeToString()
    assert str(ROOT).encode() not in notes and b"site-packages" not in notes


@pytest.mark.parametrize("collects", [True, False])
def test_a_trace_that_fails_leaves_the_process_as_it_was(collects: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage collector rests meanwhile, and torch makes no stack traces."""
    submodule = build_submodule(open_checkpoint(str(TINY)), contract.EMBED_TOKENS, "ort", torch.float32)

    def fail(*_: object, **__: object) -> None:
        assert not gc.isenabled() and fx_config.do_not_emit_stack_traces
        raise RuntimeError("as torch fails")

    monkeypatch.setattr(torch.onnx, "export", fail)
    try:
        (gc.enable if collects else gc.disable)()
        with pytest.raises(RuntimeError, match="as torch fails"):
            trace(submodule, torch.float32)
        assert gc.isenabled() is collects and not fx_config.do_not_emit_stack_traces
    finally:
        gc.enable()
