"""Second names: a graph that two precisions share, under the name each has for a runtime that goes by suffixes.

transformers.js puts `vision_encoder_q4.onnx` together from graph and precision, and its weights' name from that. A
graph that is stored alike in two precisions has one weight file; here it gets the second name as a hard link, so that
no byte lies on the disk twice, and its `.onnx` file, which names the weight file, is written again with that name.

Knows ONNX files; nothing about runtimes. Needs onnx, which is imported when a second name is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..artifact import GRAPH_DIR, data_name, suffixed
from ..output import link

Graphs = Mapping[str, Mapping[str, Any]]  # graph -> the manifest's entry of it


def second_names(
    directory: Path, graphs: Mapping[str, Graphs], wanted: Sequence[str]
) -> tuple[dict[str, Graphs], dict[str, str]]:
    """Give every graph in every precision a file of its own name.

    Args:
        graphs: by precision.
        wanted: the graphs that need one.

    Returns:
        The entries with those names, and the weight files that have a second name: it -> the first one.
    """
    named: dict[str, Graphs] = {}
    names: dict[str, str] = {}
    for precision, entries in graphs.items():
        own = dict(entries)
        for graph in wanted:
            entry, name = entries[graph], f"{GRAPH_DIR}/{suffixed(graph, precision)}.onnx"
            if entry["file"] == name:
                continue
            data = [
                f"{GRAPH_DIR}/{data_name(suffixed(graph, precision), index)}" for index in range(len(entry["data"]))
            ]
            renamed = dict(zip(entry["data"], data, strict=True))
            for first, second in renamed.items():
                link(directory / first, directory / second)
                names[second] = first
            write_again(directory / entry["file"], directory / name, renamed)
            own[graph] = {**entry, "file": name, "data": data}
        named[precision] = own
    return named, names


def write_again(source: Path, target: Path, renamed: Mapping[str, str]) -> None:
    """The same graph in another file, its weight files called otherwise."""
    import onnx

    names = {Path(first).name: Path(second).name for first, second in renamed.items()}
    model = onnx.load(source, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = names[entry.value]
    target.write_bytes(model.SerializeToString(deterministic=True))
