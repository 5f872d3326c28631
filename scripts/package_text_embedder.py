"""Make of an embedding model's artifact a directory that the ONNX backend of sentence-transformers loads, for texts.

    python scripts/package_text_embedder.py artifacts/tiny-embedding DIR

    from sentence_transformers import SentenceTransformer    # with optimum-onnx
    SentenceTransformer(DIR, backend="onnx").encode(["a red circle"], prompt="Retrieve images relevant to the query.")

That backend runs one graph from `input_ids` and `attention_mask` to `last_hidden_state`: here the token table and the
decoder, joined, over the artifact's own weight files. Positions follow from the mask, because there are no pictures.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import compose, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from qwen3vl_export.artifact import open_artifact  # noqa: E402
from qwen3vl_export.contract import DECODER, EMBED_TOKENS, EMBEDDING, NUM_LOGITS_TO_KEEP  # noqa: E402
from qwen3vl_export.errors import ArtifactError  # noqa: E402
from qwen3vl_export.runtime.retrieval import EMBEDDING_INSTRUCTION, EMBEDDING_TOKENS  # noqa: E402

COPIED = ("tokenizer.json", "chat_template.jinja")
CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
PAST = "past_key_values."
MODULES = [
    {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
    for index, (path, name) in enumerate((("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")))
]
MODALITY = {"method": "forward", "method_output_name": "last_hidden_state"}
TRANSFORMER = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": MODALITY, "message": {**MODALITY, "format": "structured"}},
    "module_output_name": "token_embeddings",
    "processing_kwargs": {"chat_template": {"add_generation_prompt": True}},
    "max_seq_length": EMBEDDING_TOKENS,
}


def join(table: onnx.ModelProto, decoder: onnx.ModelProto) -> onnx.ModelProto:
    """One graph of two, without a cache: token ids and mask [B, S] to hidden states [B, S, H]."""
    past = [value for value in decoder.graph.input if value.name.startswith(PAST)]
    cache = past[0].type.tensor_type
    heads, size = (cache.shape.dim[axis].dim_value for axis in (1, 3))
    constants = {
        **{"text/0": 0, "text/1": 1, "text/first": [0], "text/axes": [3, 1, 1], NUM_LOGITS_TO_KEEP: 0},
        **{"text/heads": [heads], "text/size": [size]},
    }
    empty = helper.make_tensor("zero", cache.elem_type, [1], [0.0])
    nodes = [
        helper.make_node("CumSum", ["attention_mask", "text/1"], ["text/tokens"]),
        helper.make_node("Sub", ["text/tokens", "text/1"], ["text/indices"]),
        helper.make_node("Max", ["text/indices", "text/0"], ["text/positions"]),
        helper.make_node("Unsqueeze", ["text/positions", "text/first"], ["text/axis"]),
        helper.make_node("Expand", ["text/axis", "text/axes"], ["position_ids"]),
        helper.make_node("Shape", ["input_ids"], ["text/batch"], start=0, end=1),
        helper.make_node("Concat", ["text/batch", "text/heads", "text/first", "text/size"], ["text/shape"], axis=0),
        *(helper.make_node("ConstantOfShape", ["text/shape"], [value.name], value=empty) for value in past),
    ]
    graph = helper.make_graph(
        [*table.graph.node, *nodes, *decoder.graph.node],
        "text_embedder",
        [*table.graph.input, *(value for value in decoder.graph.input if value.name == "attention_mask")],
        [value for value in decoder.graph.output if value.name == "last_hidden_state"],
        [
            *table.graph.initializer,
            *(tensor for tensor in decoder.graph.initializer if tensor.name != NUM_LOGITS_TO_KEEP),
            *(numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()),
        ],
    )
    opsets = {opset.domain: opset for model in (table, decoder) for opset in model.opset_import}
    return helper.make_model(graph, opset_imports=list(opsets.values()), ir_version=decoder.ir_version)


def write_package(artifact: Path, out: Path) -> None:
    """Write the directory.

    Raises:
        ArtifactError: the artifact is no embedding model, or lacks one of the two graphs.
    """
    manifest = open_artifact(artifact).manifest
    if manifest.facts.head != EMBEDDING or not {EMBED_TOKENS, DECODER} <= {*manifest.graphs}:
        raise ArtifactError(f"{artifact}: no embedding model with {EMBED_TOKENS}", "Build one with head: embedding")
    graphs = [artifact / manifest.graphs[name]["file"] for name in (EMBED_TOKENS, DECODER)]
    table, decoder = (onnx.load(path, load_external_data=False) for path in graphs)
    table = compose.add_prefix(table, "table/", rename_inputs=False, rename_outputs=False)
    (out / "onnx").mkdir(parents=True)
    (out / "onnx" / "model.onnx").write_bytes(join(table, decoder).SerializeToString(deterministic=True))
    for name in {file for graph in (EMBED_TOKENS, DECODER) for file in manifest.graphs[graph]["data"]}:
        shutil.copyfile(artifact / name, out / name)
    for name in COPIED:
        if (artifact / name).is_file():
            shutil.copyfile(artifact / name, out / name)
    pooling = {"word_embedding_dimension": manifest.facts.hidden_size, "pooling_mode": "lasttoken"}
    prompts = {"prompts": {"document": EMBEDDING_INSTRUCTION}, "default_prompt_name": "document"}
    config, tokenizer = (json.loads((artifact / name).read_text("utf-8")) for name in (CONFIG, TOKENIZER))
    tokenizer.pop(
        "processor_class", None
    )  # and the text model's configuration: a processor of pictures needs torchvision
    files: dict[str, Any] = {
        CONFIG: config["text_config"],
        TOKENIZER: {**tokenizer, "padding_side": "left"},
        "modules.json": MODULES,
        "sentence_bert_config.json": TRANSFORMER,
        "1_Pooling/config.json": pooling,
        "config_sentence_transformers.json": prompts,
    }
    for name, content in files.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    (out / "2_Normalize").mkdir()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("out", type=Path, help="a directory that does not exist yet")
    arguments = parser.parse_args()
    write_package(arguments.artifact, arguments.out)


if __name__ == "__main__":
    main()
