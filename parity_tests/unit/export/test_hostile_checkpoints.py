"""Damaged and hostile checkpoints: whatever a file holds, opening ends in seconds, well or with one line.

Each kind of file is spoilt at every place with every type of value; what is not refused must be read whole.
"""

from __future__ import annotations

import json
import shutil
import struct
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from parity_tests.fixtures.paths import TINY
from parity_tests.fixtures.spoilt import VALUES, Place, replaced, spoilt_texts, to_text
from qwen3vl_export.errors import CheckpointError
from qwen3vl_export.exporter.checkpoint import files, open_checkpoint
from qwen3vl_export.exporter.checkpoint.adapter.config import AdapterConfig

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CASES = 30  # of each file


def checkpoint_with(root: Path, name: str, content: bytes) -> Path:
    """A copy of the tiny checkpoint with one other file; its weights are a link."""
    shutil.copytree(TINY, root, ignore=shutil.ignore_patterns(WEIGHTS))
    if not name.startswith(WEIGHTS.split(".")[0]):
        (root / WEIGHTS).symlink_to(TINY / WEIGHTS)
    (root / name).write_bytes(content)
    return root


def read_whole(root: Path) -> str:
    """What opening a checkpoint says, whatever it is asked for; "" if it is read."""
    started = time.process_time()
    try:
        checkpoint = open_checkpoint(str(root))
        assert checkpoint.facts and checkpoint.tensors and checkpoint.settings
        assert isinstance(checkpoint.warnings, list) and isinstance(checkpoint.tied, bool) and checkpoint.provenance()
        said = ""
    except CheckpointError as error:
        said = str(error)
    assert "\n" not in said and len(said) < 2000 and time.process_time() - started < 5
    return said


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "preprocessor_config.json", "tokenizer_config.json"]
)
def test_settings_of_any_type_are_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    said = [
        read_whole(checkpoint_with(tmp_path / str(index), name, content))
        for index, content in enumerate(spoilt_texts(json.loads((TINY / name).read_text("utf-8")), CASES))
    ]
    assert sum(map(bool, said)) > CASES / 4


@pytest.mark.parametrize("method", [{"a": 1}, ["fp8"], [], True, 8])
def test_a_way_to_quantize_of_any_type_is_refused(method: object, tmp_path: Path) -> None:
    values = json.loads((TINY / "config.json").read_text("utf-8")) | {"quantization_config": {"quant_method": method}}
    assert "quant_method is " in read_whole(checkpoint_with(tmp_path / "checkpoint", "config.json", to_text(values)))


@pytest.mark.parametrize("base", ["a" * 300, "a/" * 3000, "~nobody-of-this-name", "~nobody-of-this-name/x"])
def test_a_base_that_is_no_name_of_a_directory_is_refused(base: str, tmp_path: Path) -> None:
    settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": base}))
    (tmp_path / "adapter_model.safetensors").symlink_to(TINY / WEIGHTS)
    assert read_whole(tmp_path)


@pytest.mark.parametrize("value", [True, 8, 0.5, "x", ["x"], [1], [None], {"x": 1}, {"x": [[]]}, [[]]])
@pytest.mark.parametrize("key", [entry.name for entry in fields(AdapterConfig)])
def test_settings_of_an_adapter_of_any_type_are_read_or_refused_in_one_line(
    key: str, value: object, tmp_path: Path
) -> None:
    settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], key: value}
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "../none", **settings}))
    (tmp_path / "adapter_model.safetensors").symlink_to(TINY / WEIGHTS)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(tmp_path))
    assert "adapter" in str(caught.value) or "none" in str(caught.value) or "x" in str(caught.value)


@pytest.mark.parametrize("expression", ["(", "[", "*", "(?P<x"])
@pytest.mark.parametrize(
    "form", [{"rank_pattern": {"%": 8}}, {"modules_to_save": ["%"]}, {"layers_pattern": "%"}, {"target_modules": "%"}]
)
def test_an_expression_of_an_adapter_that_is_none_is_refused(
    form: dict[str, object], expression: str, tmp_path: Path
) -> None:
    settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], **form}
    text = json.dumps({"base_model_name_or_path": str(TINY), **settings}).replace("%", expression)
    (tmp_path / "adapter_config.json").write_text(text)
    (tmp_path / "adapter_model.safetensors").symlink_to(TINY / WEIGHTS)
    assert "is not a regular expression" in read_whole(tmp_path)


def test_a_tokenizer_that_its_own_library_cannot_read_is_refused(tmp_path: Path) -> None:
    values = json.loads((TINY / "tokenizer.json").read_text("utf-8"))
    changes: dict[Place, Any] = {
        ("added_tokens", 0, "id"): -1,
        ("added_tokens",): "",
        ("model", "merges"): {},
        ("model", "continuing_subword_prefix"): "a\0b",  # its Rust code panics
    }
    for index, (place, value) in enumerate(changes.items()):
        root = checkpoint_with(tmp_path / str(index), "tokenizer.json", to_text(replaced(values, place, value)))
        assert "tokenizer" in read_whole(root)


def test_millions_of_layers_are_refused_at_once(tmp_path: Path) -> None:
    values = json.loads((TINY / "config.json").read_text("utf-8"))
    for place, count in ((("text_config", "num_hidden_layers"), 10**7), (("vision_config", "depth"), 10**12)):
        root = checkpoint_with(tmp_path / place[0], "config.json", to_text(replaced(values, place, count)))
        assert f"{'.'.join(place)} is {count}, a whole number from 1 to 1000 is needed" in read_whole(root)


NAME = "model.language_model.norm.weight"
MAPS: tuple[Any, ...] = (
    *VALUES,
    *({"weight_map": value} for value in VALUES),
    *({"weight_map": {NAME: value}} for value in VALUES),
    *({"weight_map": {NAME: name}} for name in ("../x", "/etc/passwd", "a/../../b", ".", "", "x" * 9999, WEIGHTS)),
    {"weight_map": {f"t{index}": f"f{index}" for index in range(files.MOST_FILES + 1)}},
)


def test_an_index_of_any_type_is_refused_in_one_line(tmp_path: Path) -> None:
    for index, value in enumerate(MAPS):
        assert read_whole(checkpoint_with(tmp_path / str(index), INDEX, to_text(value))), value


def safetensors(header: bytes, length: int | None = None) -> bytes:
    """A safetensors file of the tiny checkpoint's bytes under another header."""
    stored = (TINY / WEIGHTS).read_bytes()
    data = stored[8 + int.from_bytes(stored[:8], "little") :]
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def tiny_header() -> dict[str, Any]:
    stored = (TINY / WEIGHTS).read_bytes()
    header: dict[str, Any] = json.loads(stored[8 : 8 + int.from_bytes(stored[:8], "little")])
    return header


HEADERS: dict[str, tuple[bytes, int | None]] = {
    "empty": (b"", None),
    "no JSON": (b"\xff" * 9, None),
    "deep": (b"[" * 99_999, None),
    "deep objects": (b'{"a":' * 9999 + b"1" + b"}" * 9999, None),
    "huge": (b"{}", 2**63),
    "of the whole file": (b"{}", (TINY / WEIGHTS).stat().st_size),
    "a long name": (json.dumps({"k" * 10**6: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode(), None),
    **{f"{value!r:.20}": (to_text(value), None) for value in VALUES},
}


@pytest.mark.parametrize(("header", "length"), HEADERS.values(), ids=HEADERS)
def test_a_header_of_any_form_is_refused_in_one_line(header: bytes, length: int | None, tmp_path: Path) -> None:
    assert read_whole(checkpoint_with(tmp_path / "tiny", WEIGHTS, safetensors(header, length)))


OFFSETS = ([-1, 0], [5, 1], [0, 2**63], [2**62, 2**63], [0], [0, 1, 2], [None, None], ["a", "b"], [1.0, 2.0], [0, 512])
SHAPES = ([-128], [2**31] * 5, [1.5], ["x"], [[128]], [0], [], [127], [None])
DTYPES = ("F4", "F8_E8M0", "C64", "f32", "", None, 3, ["F32"], {})


@pytest.mark.parametrize("key", ["data_offsets", "shape", "dtype"])
def test_entries_of_any_form_are_refused_in_one_line(key: str, tmp_path: Path) -> None:
    header = tiny_header()
    lists: dict[str, tuple[Any, ...]] = {"data_offsets": OFFSETS, "shape": SHAPES, "dtype": DTYPES}
    for index, value in enumerate((*lists[key], *VALUES)):
        changed = to_text({**header, NAME: {**header[NAME], key: value}})
        assert read_whole(checkpoint_with(tmp_path / str(index), WEIGHTS, safetensors(changed))), value


def test_tensors_that_overlap_are_refused(tmp_path: Path) -> None:
    header = tiny_header()
    changed = to_text({**header, "extra": header[NAME]})
    assert "not a readable safetensors file" in read_whole(
        checkpoint_with(tmp_path / "t", WEIGHTS, safetensors(changed))
    )


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "config.json", INDEX])
def test_links_that_leave_the_directory_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    root = checkpoint_with(tmp_path / "tiny", "README.md", b"")
    (root / name).unlink(missing_ok=True)
    (root / name).symlink_to("../secret")
    assert f"{root / name}: is a link to a file outside the checkpoint's directory" in read_whole(root)


def test_settings_too_large_to_read_are_refused(tmp_path: Path) -> None:
    root = checkpoint_with(tmp_path / "tiny", "README.md", b"")
    with (root / "tokenizer.json").open("r+b") as file:
        file.truncate(files.LARGEST_SETTINGS + 1)  # a hole: takes no space
    assert "tokenizer.json: over 500000000 bytes" in read_whole(root)
