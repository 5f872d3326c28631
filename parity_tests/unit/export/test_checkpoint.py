"""Checkpoints that cannot be exported are refused in one line that names the tensor or key; good ones pass."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from parity_tests.fixtures.paths import TINY
from qwen3vl_export.errors import CheckpointError
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.exporter.submodules import check_tensors

WEIGHTS = "model.safetensors"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "checkpoint"))


def edit_tensors(root: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(root / WEIGHTS)
    change(tensors)
    save_file(tensors, root / WEIGHTS, metadata={"format": "pt"})


def edit_config(root: Path, change: Callable[[dict[str, object]], object]) -> None:
    path = root / "config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def refusal(root: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        check_tensors(open_checkpoint(str(root)), torch.float32)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_tiny_checkpoint_has_exactly_the_expected_tensors() -> None:
    check_tensors(open_checkpoint(str(TINY)), torch.float32)


def test_a_missing_tensor_is_named(copy: Path) -> None:
    edit_tensors(copy, lambda tensors: tensors.pop("model.visual.deepstack_merger_list.1.norm.weight"))
    message = refusal(copy)
    assert "model.visual.deepstack_merger_list.1.norm.weight" in message and "missing" in message


def test_a_misshaped_tensor_is_named_with_both_shapes(copy: Path) -> None:
    name = "model.language_model.norm.weight"
    edit_tensors(copy, lambda tensors: tensors.update({name: torch.zeros(7)}))
    message = refusal(copy)
    assert name in message and "[7]" in message and "[128]" in message


def test_a_truncated_file_is_refused(copy: Path) -> None:
    path = copy / WEIGHTS
    path.write_bytes(path.read_bytes()[:1000])
    assert "not a readable safetensors file" in refusal(copy)


def test_weights_that_are_not_there_are_named(copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    assert f"{WEIGHTS} is missing" in refusal(copy)


def test_another_architecture_is_refused(copy: Path) -> None:
    edit_config(copy, lambda config: config.update(model_type="qwen2_vl"))
    message = refusal(copy)
    assert "model_type is 'qwen2_vl'" in message and "qwen3_vl" in message


def test_rotary_settings_are_never_guessed(copy: Path) -> None:
    edit_config(copy, lambda config: config["text_config"].pop("rope_parameters"))  # type: ignore[attr-defined]
    assert "states no rope_theta" in refusal(copy)


def test_the_published_layout_of_rotary_settings_is_read(copy: Path) -> None:
    def as_published(config: dict[str, dict[str, object]]) -> None:
        rope = config["text_config"].pop("rope_parameters")
        assert isinstance(rope, dict)
        config["text_config"]["rope_theta"] = rope.pop("rope_theta")
        config["text_config"]["rope_scaling"] = rope

    edit_config(copy, as_published)  # type: ignore[arg-type]
    rope = open_checkpoint(str(copy)).config.text_config.rope_parameters
    assert rope["rope_theta"] == 100000.0 and rope["mrope_section"] == [6, 5, 5]


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "nowhere", "a/b/c"])
def test_a_directory_that_is_not_there_is_refused_without_asking_the_network(source: str) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint directory"):
        open_checkpoint(source)


def test_a_sharded_checkpoint_reads_as_one(copy: Path) -> None:
    tensors = load_file(copy / WEIGHTS)
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:40], "model-00002-of-00002.safetensors": names[40:]}
    for file, members in shards.items():
        save_file({name: tensors[name] for name in members}, copy / file)
    index = {"weight_map": {name: file for file, members in shards.items() for name in members}}
    (copy / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    (copy / WEIGHTS).unlink()
    opened = open_checkpoint(str(copy))
    check_tensors(opened, torch.float32)
    assert all(torch.equal(opened.read(name), tensors[name]) for name in names)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"weight_map": 3}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": ["b"]}}',
        '{"weight_map": {}}',
    ],
)
def test_an_index_that_is_none_is_refused(copy: Path, text: str) -> None:
    (copy / WEIGHTS).unlink()
    (copy / f"{WEIGHTS}.index.json").write_text(text)
    assert "model.safetensors.index.json: not a safetensors index" in refusal(copy)


def test_a_repository_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*args: object, **kwargs: object) -> object:
        raise ConnectionResetError("[Errno 104] Connection reset\nsecond line")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    with pytest.raises(
        CheckpointError, match=r"cannot be reached \(\[Errno 104\] Connection reset\).*--checkpoint DIR"
    ):
        open_checkpoint("Qwen/Qwen3-VL-2B-Instruct")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(CheckpointError, match=r"Qwen/Qwen3-VL-2B-Instruct@aaaaaaaaaaaa: cannot be downloaded"):
        open_checkpoint("Qwen/Qwen3-VL-2B-Instruct", "a" * 40)


def test_a_commit_in_the_cache_needs_no_network(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[dict[str, object]] = []

    def cached(repository: str, **kwargs: object) -> str:
        asked.append({"repository": repository, **kwargs})
        return str(copy)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    opened = open_checkpoint("org/name", "b" * 40)
    assert (opened.source, opened.revision) == ("org/name", "b" * 40)
    assert asked[0]["revision"] == "b" * 40 and "*.safetensors" in asked[0]["allow_patterns"]  # type: ignore[operator]
