"""Artifacts from strangers: what does not hold what it says, or reaches outside, is refused by every command alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from qwen3vl_export.artifact import open_artifact
from qwen3vl_export.errors import ArtifactError, Qwen3VLExportError
from qwen3vl_export.hash_cache import sha256_file
from qwen3vl_export.manifest import LARGEST_MANIFEST, MANIFEST
from qwen3vl_export.publishing.verify_artifact import verify_artifact
from qwen3vl_export.runtime import Qwen3VL

from ...fixtures.commands import assert_one_line, invoke
from ...fixtures.spoilt import replaced, spoilt_texts, to_text

COMMANDS = (
    ("run", "--prompt", "What is this?"),
    ("chat",),
    ("verify",),
    ("publish", "--to", "out"),
    ("verify-artifact",),
    ("inspect",),
    ("fetch", "--out", "out"),
)
TABLE, DATA = "onnx/embed_tokens.onnx", "onnx/embed_tokens.onnx_data"
CASES = 150


@pytest.fixture
def artifact(tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny artifact, which may be changed; the current directory is beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_text("{}")
    root = Path(shutil.copytree(tiny_artifact, tmp_path / "tiny"))  # no hard links: onnx refuses files that have some
    (root / "provenance.intoto.json").write_text("{}")
    return root


def change(root: Path, place: tuple[Any, ...], value: Any) -> None:
    """Put a value at a place of the manifest."""
    values = json.loads((root / MANIFEST).read_text("utf-8"))
    (root / MANIFEST).write_bytes(to_text(replaced(values, place, value)))


def refused(root: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        open_artifact(root, check=False)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 1000
    return said


def test_a_manifest_of_any_form_is_read_or_refused_in_one_line(tiny_artifact: Path, tmp_path: Path) -> None:
    values = json.loads((tiny_artifact / MANIFEST).read_text("utf-8"))
    said = []
    for text in spoilt_texts(values, CASES):
        (tmp_path / MANIFEST).write_bytes(text)
        try:
            artifact = open_artifact(tmp_path, check=False)
            assert artifact.manifest.to_json() and artifact.manifest.bytes >= 0 and artifact.every_precision
        except ArtifactError as error:
            said.append(str(error))
            assert "\n" not in said[-1] and len(said[-1]) < 1000
    assert len(said) > CASES / 2


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda text: text.replace('"name":', '"name": "other", "name":', 1), "not a manifest (name is given twice)"),
        (lambda text: text.replace('"tiny"', '"tiny\\ud800"', 1), "holds half a surrogate pair"),
        (lambda text: text[:-9], "not a manifest"),
        (lambda text: "", "not a manifest"),
        (lambda text: text + " " * LARGEST_MANIFEST, "not a manifest (over 100000000 bytes)"),
    ],
)
def test_other_readers_would_read_something_else(spoil: Callable[[str], str], expected: str, artifact: Path) -> None:
    (artifact / MANIFEST).write_text(spoil((artifact / MANIFEST).read_text("utf-8")), "utf-8")
    assert expected in refused(artifact)


OUTSIDE = ("../secret", "/etc/passwd", "onnx/../../secret", "./onnx/x", "a//b", "", "a\\b", "C:x", "a\0b", "x" * 300)


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_leads_outside(name: str, artifact: Path) -> None:
    record = json.loads((artifact / MANIFEST).read_text("utf-8"))["files"][DATA]
    manifest = (artifact / MANIFEST).read_bytes()
    for place, value in (
        (("files", name), record),
        (("graphs", "embed_tokens", "file"), name),
        (("graphs", "embed_tokens", "data"), [name]),
        (("graphs", "embed_tokens", "shared"), [{"file": name, "tensors": []}]),
        (("second_names", name), DATA),
        (("second_names", DATA), name),
    ):
        values = json.loads(manifest)
        values = values if place[-1] not in (name, DATA, "shared") else replaced_key(values, place)
        (artifact / MANIFEST).write_bytes(to_text(replaced(values, place, value)))
        assert "is not the name of a file inside the directory" in refused(artifact), place


def replaced_key(values: dict[str, Any], place: tuple[Any, ...]) -> dict[str, Any]:
    """The values with the last key of a place, if it is not there."""
    inner = values
    for key in place[:-1]:
        inner = inner[key]
    inner.setdefault(place[-1], None)
    return values


CONTRADICTIONS: dict[str, tuple[tuple[Any, ...], Any, str]] = {
    "an empty graph": (("files", TABLE, "bytes"), 0, f"is made of {TABLE}, which is empty"),
    "empty weights": (("files", DATA, "bytes"), 0, f"is made of {DATA}, which is empty"),
    "another graph's file": (
        ("graphs", "embed_tokens", "file"),
        "onnx/embeddings.onnx",
        "graph embed_tokens is in onnx/embeddings.onnx, not in onnx/embed_tokens.onnx",
    ),
    "no graph at all": (("graphs", "embed_tokens", "file"), "config.json", "is in config.json, not in"),
    "another file's second name": (("second_names",), {DATA: "config.json"}, "under a second name"),
    "inputs of another size": (("facts", "vocab_size"), 9, "are not those this version declares"),
    "no layers": (("facts", "num_hidden_layers"), 0, "facts.num_hidden_layers is less than 1"),
    "millions of layers": (("facts", "num_hidden_layers"), 10**7, "facts.num_hidden_layers is more than 1000"),
    "patches of a metre": (("facts", "patch_size"), 2**20, "facts.patch_size is more than 128"),
    "no version": (("tools",), {}, "its tools do not name qwen3vl-export"),
    "grids of a hundred thousand pixels": (("recipe", "vision", "sizes"), [[10**5, 10**5]], "over 16777216 pixels"),
}


@pytest.mark.parametrize(("place", "value", "expected"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_what_contradicts_itself_is_refused(place: tuple[Any, ...], value: Any, expected: str, artifact: Path) -> None:
    change(artifact, place, value)
    assert expected in refused(artifact)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("name", [MANIFEST, "config.json", DATA, "parity.json", "provenance.intoto.json"])
def test_every_command_refuses_links_that_leave_the_directory(
    name: str, command: tuple[str, ...], artifact: Path
) -> None:
    target = Path("../" * (1 + name.count("/"))) / "elsewhere"
    if (artifact / name).exists():
        shutil.move(artifact / name, artifact.parent / "elsewhere")
    else:
        (artifact.parent / "elsewhere").write_text("{}")
    (artifact / name).symlink_to(target)
    assert_one_line(invoke(command[0], str(artifact), *command[1:]), f"{name}: lies outside")
    assert not Path("out").exists()


def test_links_in_a_circle_are_refused(artifact: Path) -> None:
    (artifact / "config.json").unlink()
    (artifact / "config.json").symlink_to("config.json")
    assert "config.json: lies outside" in refused(artifact)


def point_elsewhere(root: Path, location: str) -> None:
    """Make a graph read its weights from another place, and the manifest agree with the graph."""
    model = onnx.load(root / TABLE, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    onnx.save(model, root / TABLE)
    record = {"bytes": (root / TABLE).stat().st_size, "sha256": sha256_file(root / TABLE)}
    change(root, ("files", TABLE), record)


@pytest.mark.parametrize("location", ["../../secret", "/etc/passwd", "embed_tokens.onnx_data/../../../secret"])
def test_weights_outside_the_directory_are_refused(location: str, artifact: Path) -> None:
    point_elsewhere(artifact, location)
    for name, *options in (("verify-artifact",), ("inspect",), ("fetch", "--out", "out")):
        assert_one_line(
            invoke(name, str(artifact), *options), f"{TABLE}: its data {location!r} is outside the artifact"
        )
    with pytest.raises(ArtifactError, match="is outside the artifact"):
        Qwen3VL.load(artifact).sessions.open("embed_tokens")
    assert not Path("out").exists()


def test_weights_that_nobody_lists_are_refused(artifact: Path) -> None:
    shutil.copyfile(artifact / DATA, artifact / "onnx" / "other.onnx_data")
    point_elsewhere(artifact, "other.onnx_data")
    for name in ("verify-artifact", "inspect"):
        assert_one_line(invoke(name, str(artifact)), f"{TABLE}: its data 'other.onnx_data' is no file of the artifact")
    with pytest.raises(ArtifactError, match="is no file of the artifact"):
        Qwen3VL.load(artifact).sessions.open("embed_tokens")


def test_a_graph_of_another_signature_is_refused(artifact: Path) -> None:
    model = onnx.load(artifact / TABLE, load_external_data=False)
    for node in model.graph.node:
        node.output[:] = [name.replace("inputs_embeds", "rows") for name in node.output]
    model.graph.output[0].name = "rows"
    onnx.save(model, artifact / TABLE)
    change(
        artifact,
        ("files", TABLE),
        {"bytes": (artifact / TABLE).stat().st_size, "sha256": sha256_file(artifact / TABLE)},
    )
    with pytest.raises(ArtifactError, match=r"embed_tokens\.onnx: its outputs are not those in manifest\.json"):
        Qwen3VL.load(artifact).sessions.open("embed_tokens")


def test_files_that_nobody_lists_are_not_read_and_not_fetched(artifact: Path) -> None:
    values = json.loads((artifact / MANIFEST).read_text("utf-8"))
    del values["files"]["chat_template.jinja"]
    (artifact / MANIFEST).write_text(json.dumps(values))
    (artifact / ".gitattributes").touch()
    (artifact / "chat_template.jinja").unlink()
    (artifact / "chat_template.jinja").write_text("something else")
    assert "something else" not in Qwen3VL.load(artifact).prepare([[{"role": "user", "content": "Hi"}]]).texts[0]
    with pytest.raises(Qwen3VLExportError, match=r"holds chat_template\.jinja, which neither its manifest nor"):
        list(verify_artifact(artifact))


@pytest.mark.parametrize("name", ["generation_config.json", "preprocessor_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", [b"[]", b"null", b"3", b"{", b"[" * 99_999, b"\xff"])
def test_settings_that_are_no_object_are_one_line(name: str, text: bytes, artifact: Path) -> None:
    (artifact / name).unlink()
    (artifact / name).write_bytes(text)
    with pytest.raises(ArtifactError, match=name.replace(".", r"\.")) as caught:
        assert Qwen3VL.load(artifact, check=False).preparer.sizing.image_rules
    assert "\n" not in str(caught.value)
