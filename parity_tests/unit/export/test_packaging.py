"""What packaging writes for the released runtimes, and that Python's transformers reads it as before.

That the runtimes load it is shown in `parity_tests/downstream`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import onnx
import onnxruntime as ort
import pytest
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from parity_tests.fixtures.paths import DOCS, TINY
from qwen3vl_export import contract
from qwen3vl_export.artifact import open_artifact
from qwen3vl_export.contract import TEXT
from qwen3vl_export.errors import BuildError
from qwen3vl_export.packaging import RUNTIMES, genai, loadable_runtimes, transformers_js
from qwen3vl_export.packaging.decoders import write_decoders
from qwen3vl_export.packaging.package import Package
from qwen3vl_export.promise import GENAI, ONNXRUNTIME, SECOND_DECODER, TRANSFORMERS_JS
from qwen3vl_export.recipe.blocks import GRAPH_NAMES, RuntimeName

DOCUMENT = DOCS / "downstream.md"


def settings(artifact: Path, name: str) -> Any:
    return json.loads((artifact / name).read_text("utf-8"))


def test_recipes_can_name_every_runtime_of_the_table() -> None:
    assert set(get_args(RuntimeName)) == set(RUNTIMES)


@pytest.mark.parametrize(
    "graphs, grid, expected",
    [
        (GRAPH_NAMES, "dynamic", (ONNXRUNTIME, GENAI, TRANSFORMERS_JS)),
        (GRAPH_NAMES, "fixed", (ONNXRUNTIME,)),
        (GRAPH_NAMES, "buckets", (ONNXRUNTIME,)),
        (("vision_encoder", "embeddings", "decoder_model_merged"), "dynamic", (ONNXRUNTIME, GENAI)),
        (("vision_encoder",), "dynamic", (ONNXRUNTIME,)),
    ],
)
def test_which_runtimes_can_load_what(graphs: tuple[str, ...], grid: str, expected: tuple[str, ...]) -> None:
    assert loadable_runtimes(graphs, grid, TEXT) == expected


def test_the_manifest_lists_every_file_and_no_weight_twice(tiny_artifact: Path) -> None:
    manifest = open_artifact(tiny_artifact).manifest
    assert set(manifest.recipe["packaging"]["runtimes"]) == set(RUNTIMES)
    for runtime in RUNTIMES.values():
        assert set(runtime.files) <= set(manifest.files)
    weights = [name for name in manifest.files if name.endswith(".onnx_data")]
    assert sorted(weights) == sorted({data for graph in manifest.graphs.values() for data in graph["data"]})
    assert len({manifest.files[name].sha256 for name in weights}) == len(weights)


def test_genai_names_the_files_and_tensors_of_the_contract(tiny_artifact: Path) -> None:
    facts = open_artifact(tiny_artifact, check=False).manifest.facts
    model = settings(tiny_artifact, "genai_config.json")["model"]
    for part in ("vision", "embedding", "decoder"):
        assert (tiny_artifact / model[part]["filename"]).is_file()
    assert (tiny_artifact / model["vision"]["config_filename"]).is_file()
    declared = {tensor.name for tensor in contract.decoder(facts).inputs}
    named = model["decoder"]["inputs"]
    patterns = [named.pop("past_key_names"), named.pop("past_value_names")]
    expanded = {pattern % layer for pattern in patterns for layer in range(facts.num_hidden_layers)}
    assert declared - {contract.NUM_LOGITS_TO_KEEP} == expanded | set(named.values())
    assert model["decoder"]["hidden_size"] == 4 * facts.hidden_size


@pytest.mark.parametrize(("provider", "options"), [("cpu", []), ("cuda", [{"cuda": {}}])])
def test_genai_is_told_the_provider_of_the_recipe_and_how_to_open_graphs(
    provider: str, options: list[dict[str, dict[str, str]]], tiny_artifact: Path
) -> None:
    """In the decoder's settings, which it uses for the other two graphs as they have none; and in no other place."""
    facts = open_artifact(tiny_artifact, check=False).manifest.facts
    model = genai.config(Package(tiny_artifact, facts, {}, provider))["model"]
    assert model["decoder"]["session_options"] == {"provider_options": options, **dict([contract.FOLD_ANY_SIZE])}
    assert "session_options" not in {*model["vision"], *model["embedding"]}


def test_transformers_js_gets_a_decoder_that_requires_the_number_of_logits(tiny_artifact: Path) -> None:
    """Its onnxruntime lists an input only if it has no default, and it passes an input only if it is listed."""
    decoder = ort.InferenceSession(tiny_artifact / "onnx" / "decoder_model_merged.onnx")
    assert contract.NUM_LOGITS_TO_KEEP in [node.name for node in decoder.get_inputs()]


def test_genai_gets_a_decoder_that_does_not(tiny_artifact: Path) -> None:
    model = settings(tiny_artifact, "genai_config.json")["model"]
    decoder = ort.InferenceSession(tiny_artifact / model["decoder"]["filename"])
    assert contract.NUM_LOGITS_TO_KEEP not in [node.name for node in decoder.get_inputs()]
    assert [node.name for node in decoder.get_overridable_initializers()] == [contract.NUM_LOGITS_TO_KEEP]


def test_the_two_decoders_differ_in_a_default_alone(tiny_artifact: Path) -> None:
    required, optional = (
        onnx.load(tiny_artifact / "onnx" / f"{name}.onnx", load_external_data=False)
        for name in (contract.DECODER, SECOND_DECODER)
    )
    default = next(tensor for tensor in optional.graph.initializer if tensor.name == contract.NUM_LOGITS_TO_KEEP)
    optional.graph.initializer.remove(default)
    assert required == optional


@pytest.mark.parametrize(
    ("runtimes", "decoders"),
    [
        ((ONNXRUNTIME,), {"": True}),
        ((GENAI,), {"": True}),
        ((TRANSFORMERS_JS,), {"": False}),
        ((GENAI, TRANSFORMERS_JS), {"": False, "second": True}),
    ],
)
def test_no_runtime_gets_a_second_decoder_without_need(
    runtimes: tuple[str, ...], decoders: dict[str, bool], tiny_artifact: Path, tmp_path: Path
) -> None:
    (tmp_path / "onnx").mkdir()
    first, second = f"onnx/{contract.DECODER}.onnx", f"onnx/{SECOND_DECODER}.onnx"
    shutil.copyfile(tiny_artifact / second, tmp_path / first)  # as it was built
    graphs = {contract.DECODER: {"file": first}}
    write_decoders(tmp_path, runtimes, [graphs], [graphs])
    paths = {"": tmp_path / first, "second": tmp_path / second}
    has_default = {
        name: any(
            tensor.name == contract.NUM_LOGITS_TO_KEEP
            for tensor in onnx.load(path, load_external_data=False).graph.initializer
        )
        for name, path in paths.items()
        if path.exists()
    }
    assert has_default == decoders


def test_a_fixed_size_is_packaged_for_onnxruntime_alone(tiny_fixed_artifact: Path) -> None:
    assert settings(tiny_fixed_artifact, "manifest.json")["recipe"]["packaging"]["runtimes"] == [ONNXRUNTIME]
    assert not (tiny_fixed_artifact / "genai_config.json").exists()
    assert "transformers.js_config" not in settings(tiny_fixed_artifact, "config.json")


def test_transformers_reads_the_completed_files_as_before(tiny_artifact: Path) -> None:
    added = "transformers.js_config"
    config, plain = (AutoConfig.from_pretrained(path).to_dict() for path in (tiny_artifact, TINY))
    assert config.pop(added)["use_external_data_format"]["decoder_model_merged.onnx"] == 1
    assert {**config, "_name_or_path": ""} == {**plain, "_name_or_path": ""}
    pixels, expected = (Qwen2VLImageProcessorPil.from_pretrained(path) for path in (tiny_artifact, TINY))
    assert pixels.to_dict() == expected.to_dict()
    tokenizer, known = (AutoTokenizer.from_pretrained(path) for path in (tiny_artifact, TINY))
    assert tokenizer.chat_template == known.chat_template
    assert tokenizer("<|im_start|>user\nHi") == known("<|im_start|>user\nHi")
    assert GenerationConfig.from_pretrained(tiny_artifact) == GenerationConfig.from_pretrained(TINY)


def test_weights_where_transformers_js_does_not_look_are_refused(tiny_artifact: Path) -> None:
    manifest = open_artifact(tiny_artifact, check=False).manifest
    graphs = {graph: {"data": [f"onnx/{graph}.onnx_data"]} for graph in transformers_js.GRAPHS}

    def chunks(**changes: list[str]) -> dict[str, int]:
        entries = {"": {**graphs, **{graph: {"data": data} for graph, data in changes.items()}}}
        config = transformers_js.config(Package(tiny_artifact, manifest.facts, entries))
        counts: dict[str, int] = config["transformers.js_config"]["use_external_data_format"]
        return counts

    whole = {f"{graph}.onnx": 1 for graph in graphs}
    assert chunks() == whole
    split = chunks(vision_encoder=["onnx/vision_encoder.onnx_data", "onnx/vision_encoder.onnx_data_1"])
    assert split == {**whole, "vision_encoder.onnx": 2}
    with pytest.raises(BuildError, match=r"embed_tokens\.onnx: its weights are in shared\.onnx_data"):
        chunks(embed_tokens=["onnx/shared.onnx_data"])


def test_the_chat_template_may_lie_in_the_tokenizer_settings(tmp_path: Path, tiny_artifact: Path) -> None:
    facts = open_artifact(tiny_artifact, check=False).manifest.facts
    package = Package(tmp_path, facts, {})
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "mine"}')
    assert transformers_js.tokenizer(package) == {"chat_template": "mine"}
    (tmp_path / "chat_template.jinja").write_text("newer")
    assert transformers_js.tokenizer(package) == {"chat_template": "newer"}
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert transformers_js.tokenizer(package) == {}


def test_the_documentation_lists_the_limits_of_the_table() -> None:
    page = " ".join(DOCUMENT.read_text("utf-8").split())
    for name, runtime in RUNTIMES.items():
        assert f"| {name} | {runtime.releases} |" in page
        assert not [limit for limit in runtime.limits if f"- {limit}" not in page]
