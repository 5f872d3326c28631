"""Prints an `Inspection` as tables. Knows nothing about ONNX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from ..artifact import Artifact
from ..console import console, format_size, say, table
from ..manifest import Manifest
from ..packaging.browsers import describe
from . import GraphReport, Inspection, Port

PER_LAYER = ".0."  # in names of layer 0's tensors, which represent those of every layer


def show(inspection: Inspection) -> None:
    """Print an inspection."""
    if inspection.manifest is not None:
        _show_manifest(inspection.path, inspection.manifest)
    seen: set[str] = set()
    for graph in inspection.graphs:
        _show_graph(graph, seen)
        seen.update(graph.data)


def _show_manifest(path: str, manifest: Manifest) -> None:
    checkpoint = manifest.checkpoint
    say(f"{path}: {manifest.name}, {len(manifest.files)} files, {format_size(manifest.bytes)}")
    rows = [
        (
            "model",
            f"{manifest.facts.model_type}, {manifest.facts.num_hidden_layers} layers x {manifest.facts.hidden_size}",
        ),
        ("checkpoint", f"{checkpoint.get('source')} @ {checkpoint.get('revision')}"),
        ("target, dtype", f"{manifest.recipe.get('target')}, {manifest.recipe.get('dtype')}"),
        ("more precisions", ", ".join(manifest.precisions)),
        (
            "picture sizes",
            ", ".join(_picture_size(encoder.grid, manifest.facts.patch_size) for encoder in manifest.encoders),
        ),
        ("encoder rule", manifest.encoder_rule),
        ("in browsers", describe(Artifact(Path(path), manifest))),
        ("built with", ", ".join(f"{tool} {version}" for tool, version in sorted(manifest.tools.items()))),
        ("needs", f"onnxruntime >= {manifest.min_onnxruntime}"),
    ]
    console().print(table("", ("", ""), [row for row in rows if row[1]], wrap=""))


def _picture_size(grid: tuple[int, int] | None, patch_size: int) -> str:
    """Height x width in pixels of the pictures an encoder takes."""
    return "any" if grid is None else f"{grid[0] * patch_size}x{grid[1] * patch_size}"


def _show_graph(graph: GraphReport, seen: Set[str]) -> None:
    """Print one graph; weight files in `seen` have been printed with an earlier one."""
    out = console()
    opset = ", ".join(f"{domain} {version}" for domain, version in graph.opset.items())
    out.print()
    say(f"{graph.file}: {format_size(graph.bytes)} graph, {sum(graph.ops.values())} nodes, opset {opset}")
    for file, count in graph.data.items():
        shared = ", shared with the graph above" if file in seen else ""
        say(f"{file}: {format_size(count) if count >= 0 else 'MISSING'} weights{shared}")
    columns = ("", "name", "dtype", "shape")
    ports = [*_rows("input", graph.inputs), *_rows("output", graph.outputs)]
    out.print("", table("inputs and outputs", columns, ports, wrap="shape"))
    weights = [(dtype, entry.count, format_size(entry.bytes)) for dtype, entry in graph.weights.items()]
    out.print("", table("weights", ("dtype", "tensors", "size"), weights, right=("tensors", "size")))
    ops = sorted(graph.ops.items(), key=lambda item: (-item[1], item[0]))
    out.print("", table("operators", ("operator", "count"), ops, right=("count",)))
    if graph.stages:
        stages, rows = _stage_rows(graph.stages)
        out.print("", table("build stages", stages, rows, right=stages[1:]))


def _rows(kind: str, ports: Sequence[Port]) -> list[tuple[str, str, str, str]]:
    """One row per tensor; of the cache, which repeats for every layer, one row stands for all layers."""
    layers = {port.name.split(".")[1] for port in ports if port.name.count(".") == 2}
    rows = []
    for port in ports:
        name = port.name
        if name.count(".") == 2 and len(layers) > 1:
            if PER_LAYER not in name:
                continue
            name = name.replace(PER_LAYER, f".{{0..{len(layers) - 1}}}.")
        rows.append((kind, name, port.dtype, f"[{', '.join(str(dim) for dim in port.shape)}]"))
    return rows


def _stage_rows(stages: Sequence[Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the manifest's stage records; operator counts are reduced to the number of operators."""
    records: list[Mapping[str, Any]] = [stage for stage in stages if isinstance(stage, Mapping)]
    columns = list(dict.fromkeys(["stage", *(key for record in records for key in record)]))
    rows = [[_cell(key, record.get(key, "")) for key in columns] for record in records]
    return ["kinds of operator" if column == "ops" else column for column in columns], rows


def _cell(key: str, value: Any) -> str:
    if isinstance(value, Mapping | list | tuple):
        return str(len(value))
    return format_size(value) if "bytes" in key and isinstance(value, int) else str(value)
