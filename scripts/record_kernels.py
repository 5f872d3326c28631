"""Ask one of onnxruntime's providers which nodes of an artifact's graphs it takes, and record the answers.

    python scripts/record_kernels.py CUDAExecutionProvider artifacts/tiny-cuda artifacts/tiny-cuda-int4

Runs where the provider's onnxruntime (1.31 or newer) and onnx are installed, with the source tree on PYTHONPATH. Each
kind of node is opened as a model of that node alone, without optimizations, and onnxruntime says which provider it was
assigned to: what is recorded is the release's own register of kernels, not its documentation. Nothing is computed, so
CUDA needs no GPU: `scripts/cuda_standin.py` makes libraries with which its provider starts.

Writes parity_tests/fixtures/kernels.json; answers of other providers, and for nodes of other artifacts, stay there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime as ort
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper

from parity_tests.fixtures.kernels import RECORD, Kind, kinds, load_graph


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("provider", help="onnxruntime's name: CUDAExecutionProvider")
    parser.add_argument("artifacts", nargs="+", type=Path, help="artifact directories")
    arguments = parser.parse_args()
    answers: dict[str, bool] = {}
    for artifact in arguments.artifacts:
        for path in sorted((artifact / "onnx").glob("*.onnx")):
            model = load_graph(path)
            for kind in kinds(model):
                if kind.name not in answers and kind.node.op_type != "Constant":
                    answers[kind.name] = takes(arguments.provider, kind, model)
    record = json.loads(RECORD.read_text("utf-8")) if RECORD.is_file() else {}
    earlier = record.get(arguments.provider, {"kernels": {}})
    if earlier.get("onnxruntime", ort.__version__) != ort.__version__:
        earlier = {"kernels": {}}  # another release's answers
    kernels = dict(sorted({**earlier["kernels"], **answers}.items()))
    record[arguments.provider] = {"onnxruntime": ort.__version__, "kernels": kernels}
    RECORD.write_text(json.dumps(dict(sorted(record.items())), indent=1) + "\n", "utf-8")
    print(f"{RECORD}: {len(answers)} kinds of nodes, {sum(answers.values())} of them {arguments.provider} takes")


def takes(provider: str, kind: Kind, model: ModelProto) -> bool:
    """Whether a provider is assigned a node that is alone in its model."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    serialized = alone(kind, model).SerializeToString()
    providers = [provider, "CPUExecutionProvider"]
    session = ort.InferenceSession(serialized, options, providers=providers, enable_fallback=0)
    if provider not in session.get_providers():
        raise SystemExit(f"{provider} does not start in this onnxruntime {ort.__version__}")
    assigned = [
        subgraph.ep_name
        for subgraph in session.get_provider_graph_assignment_info()
        for node in subgraph.get_nodes()
        if node.op_type == kind.node.op_type
    ]
    return bool(assigned) and set(assigned) == {provider}


def alone(kind: Kind, model: ModelProto) -> ModelProto:
    """A model of one node; what it reads is the model's inputs, and tensors may have any shape."""
    names = dict.fromkeys([name for name in kind.node.input if name] + list(captured(kind)))
    inputs = [onnx.ValueInfoProto(name=name, type=type_of(kind.types[name])) for name in names]
    outputs = [onnx.ValueInfoProto(name=name, type=type_of(kind.types[name])) for name in kind.node.output if name]
    graph = helper.make_graph([kind.node], "alone", inputs, outputs)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def captured(kind: Kind) -> Iterator[str]:
    """Values outside of a node that graphs inside it read."""
    for attribute in kind.node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            body: GraphProto = attribute.g
            own = {value.name for value in (*body.input, *body.initializer)} | {
                name for node in body.node for name in node.output
            }
            yield from (name for node in body.node for name in node.input if name and name not in own)


def type_of(name: str) -> onnx.TypeProto:
    """An ONNX type of any shape by the name that `kinds` gives it."""
    if name.startswith("seq("):
        return helper.make_sequence_type_proto(type_of(name.removeprefix("seq(").removesuffix(")")))
    return helper.make_tensor_type_proto(TensorProto.DataType.Value(name.upper()), None)


if __name__ == "__main__":
    main()
