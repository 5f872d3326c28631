"""Second names: weights that several graphs share, under the names by which a runtime looks for them.

transformers.js derives `vision_encoder_q4.onnx` from graph and precision, and the names of its weight files from that.
A graph that is stored in the same way in two precisions has one weight file, and so have a token table and the output
head that is the same matrix. Such a file gets a second name as a hard link, so that nothing is stored twice, and the
`.onnx` file, which names its weight files, is written again with that name.

Knows ONNX files; nothing about runtimes. Imports onnx only when there is a second name to add.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..artifact import data_name
from ..output import link
from ..promise import GRAPH_DIR, suffixed

Graphs = Mapping[str, Mapping[str, Any]]  # graph -> its manifest entry


def add_second_names(
    directory: Path, graphs: Mapping[str, Graphs], graphs_to_name: Sequence[str]
) -> tuple[dict[str, Graphs], dict[str, str]]:
    """Give every graph in every precision a file of its own name, and weight files named after that.

    Args:
        graphs: by precision.
        graphs_to_name: the graphs that need them.

    Returns:
        The entries with those names, and second names of weight files -> their first names.
    """
    named_graphs: dict[str, Graphs] = {}
    second_names: dict[str, str] = {}
    copies: list[tuple[str, str, dict[str, str]]] = []  # source, target, first name -> second name
    for precision, entries in graphs.items():
        named_entries = dict(entries)
        for graph in graphs_to_name:
            entry, stem = entries[graph], suffixed(graph, precision)
            name = f"{GRAPH_DIR}/{stem}.onnx"
            data = [f"{GRAPH_DIR}/{data_name(stem, index)}" for index in range(len(entry["data"]))]
            renamed = {first: second for first, second in zip(entry["data"], data, strict=True) if first != second}
            if not renamed:
                continue
            for first, second in renamed.items():
                link(directory / first, directory / second)
                second_names[second] = first
            copies.append((entry["file"], name, renamed))
            named_entries[graph] = {**entry, "file": name, "data": data}
        named_graphs[precision] = named_entries
    for source, target, renamed in sorted(copies, key=lambda copy: copy[0] == copy[1]):  # those in place come last
        write_renamed(directory / source, directory / target, renamed)
    return named_graphs, second_names


def write_renamed(source: Path, target: Path, renamed: Mapping[str, str]) -> None:
    """Write a graph to another file, with other names for its weight files."""
    import onnx

    names = {Path(first).name: Path(second).name for first, second in renamed.items()}
    model = onnx.load(source, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = names.get(entry.value, entry.value)
    target.write_bytes(model.SerializeToString(deterministic=True))
