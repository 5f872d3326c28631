"""Records which operators the WebGPU provider of onnxruntime runs, and counts what crosses between CPU and GPU.

    python scripts/record_webgpu_operators.py artifacts/tiny artifacts/tiny-fp16 …
    python scripts/record_webgpu_operators.py --count artifacts/tiny

Run it in an environment of its own that has onnx, onnxruntime-webgpu (it replaces onnxruntime) and this directory.
Without a GPU, Chromium's SwiftShader is one:

    export VK_ICD_FILENAMES=/usr/lib/chromium/vk_swiftshader_icd.json LD_LIBRARY_PATH=/usr/lib/chromium

A node is placed when a session opens, which onnxruntime writes into its log; nothing is run. Only nodes that read
activations are recorded, by `parity_tests/fixtures/activations.py`, into parity_tests/fixtures/webgpu_operators.json.
`parity_tests/unit/export/test_webgpu.py` holds every graph against that file.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import onnx
import onnxruntime as ort

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from parity_tests.fixtures.activations import OPERATORS, activation_nodes, all_nodes, operator_of

GRAPHS = ("vision_encoder*.onnx", "embed_tokens*.onnx", "decoder_model_merged*.onnx")
PROVIDERS = ["WebGpuExecutionProvider", "CPUExecutionProvider"]
PLACED = re.compile(r"(?:placed on \[(?P<provider>\w+)\])|(?:ToAnEp\]\s+(?P<op>\w+) \((?P<name>.*)\)\s*$)")


def placements(graph: Path, optimized: bool = True) -> dict[str, list[tuple[str, str]]]:
    """(operator, name) of the nodes of each provider, copies included, after naming every node by its number."""
    model = onnx.load(graph, load_external_data=False)
    for number, node in enumerate(all_nodes(model.graph)):
        node.name = str(number)
    options = ort.SessionOptions()
    options.log_severity_level = 0
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    with tempfile.NamedTemporaryFile(dir=graph.parent, suffix=".onnx") as named, tempfile.TemporaryFile("w+") as log:
        named.write(model.SerializeToString())
        named.flush()
        stderr = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            ort.InferenceSession(named.name, options, providers=PROVIDERS)
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        log.seek(0)
        matches = [match for line in log if (match := PLACED.search(line))]
    nodes: dict[str, list[tuple[str, str]]] = {provider: [] for provider in PROVIDERS}
    provider = ""
    for match in matches:
        if match["provider"]:
            provider = match["provider"]
        else:
            nodes[provider].append((match["op"], match["name"]))
    if not any(nodes.values()):  # the log names no node of a graph that has one provider
        nodes[provider] = [(node.op_type, node.name) for node in all_nodes(model.graph)]
    return nodes


def count(graph: Path) -> str:
    """Nodes of each provider and copies each way, of the graph as onnxruntime optimizes it."""
    nodes = placements(graph)
    copies = Counter(op for op, _ in nodes[PROVIDERS[0]] if op.startswith("Memcpy"))
    on_gpu = len(nodes[PROVIDERS[0]]) - copies.total()
    return (
        f"{graph.name}: {len(nodes[PROVIDERS[1]])} nodes on CPU, {on_gpu} on the GPU, "
        f"{copies['MemcpyFromHost']} copies to it, {copies['MemcpyToHost']} back"
    )


def record(graphs: list[Path]) -> dict[str, dict[str, list[str]]]:
    """For each operator set, the operators that read activations: those all of whose nodes run on the GPU."""
    places: dict[tuple[str, str], set[str]] = {}
    for graph in graphs:
        provider_of = {name: provider for provider, nodes in placements(graph, False).items() for _, name in nodes}
        model = onnx.load(graph, load_external_data=False)
        activations = {node.output[0] for node in activation_nodes(model)}
        for number, node in enumerate(all_nodes(model.graph)):
            if (
                node.output[0] in activations and str(number) in provider_of
            ):  # onnxruntime merges some, whatever the options
                places.setdefault(operator_of(node, model), set()).add(provider_of[str(number)])
    operators: dict[str, dict[str, list[str]]] = {"gpu": {}, "cpu": {}}
    for (opset, op), providers in sorted(places.items()):
        operators["gpu" if providers == {PROVIDERS[0]} else "cpu"].setdefault(opset, []).append(op)
    return operators


def main(arguments: list[str]) -> None:
    directories = [Path(argument) for argument in arguments if argument != "--count"]
    graphs = [file for directory in directories for name in GRAPHS for file in sorted((directory / "onnx").glob(name))]
    for graph in graphs:
        print(count(graph))
    if "--count" not in arguments:
        source = f"onnxruntime-webgpu {version('onnxruntime-webgpu')}"
        OPERATORS.write_text(json.dumps({"source": source, **record(graphs)}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
