"""Times the forms of one matrix product by the number of rows, on the processor that it runs on.

    python scripts/bench_products.py                       [M, 2048] x [2048, 6144], as in the decoder of 2B
    python scripts/bench_products.py --out docs/bench/products.json

Forms take turns, and the fastest call of each counts: other programs only ever add time. Which block size and which
`accuracy_level` a recipe should ask for follows from this table; see docs/recipes.md.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime as ort
import typer
from bench_vision import cpu_name
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

ROWS = {1: 100, 8: 40, 128: 8, 512: 4, 2048: 2}  # rows of x, and how often each form is called with them
BLOCKS = (32, 64, 128, 256)
LEVELS = (0, 4)
Arrays = Mapping[str, NDArray[Any]]


def open_product(op_type: str, arrays: Arrays, threads: int, **attributes: int) -> ort.InferenceSession:
    """A session of one operator: x, and these arrays as its other inputs."""
    domain = "" if op_type == "MatMul" else "com.microsoft"
    node = helper.make_node(op_type, ["x", *arrays], ["y"], domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def open_blocks(
    generator: np.random.Generator, width: int, outputs: int, bits: int, block: int, level: int, threads: int
) -> ort.InferenceSession:
    """`MatMulNBits` with zero points."""
    blocks = width // block
    arrays = {
        "codes": generator.integers(0, 256, (outputs, blocks, block * bits // 8), np.uint8),
        "scales": generator.random((outputs, blocks), np.float32),
        "zero_points": generator.integers(0, 256, (outputs, -(-blocks * bits // 8)), np.uint8),
    }
    attributes = {"N": outputs, "K": width, "bits": bits, "block_size": block, "accuracy_level": level}
    return open_product("MatMulNBits", arrays, threads, **attributes)


def open_forms(width: int, outputs: int, threads: int) -> dict[str, ort.InferenceSession]:
    """Every form of the product."""
    generator = np.random.default_rng(0)
    forms = {"float32": open_product("MatMul", {"w": generator.random((width, outputs), np.float32)}, threads)}
    for level in LEVELS:
        for block in BLOCKS:
            name = f"int4, blocks of {block}, accuracy_level {level}"
            forms[name] = open_blocks(generator, width, outputs, 4, block, level, threads)
    for level in LEVELS:
        name = f"int8, blocks of 32, accuracy_level {level}"
        forms[name] = open_blocks(generator, width, outputs, 8, 32, level, threads)
    columns = {
        "w": generator.integers(-127, 128, (width, outputs), np.int8),
        "scales": generator.random(outputs, np.float32),
    }
    forms["int8_dynamic"] = open_product("DynamicQuantizeMatMul", columns, threads)
    return forms


def main(
    width: Annotated[int, typer.Option(help="K, values of a row of x.")] = 2048,
    outputs: Annotated[int, typer.Option(help="N.")] = 6144,
    threads: int = 2,
    out: Annotated[Path | None, typer.Option(help="Write the milliseconds here as JSON.")] = None,
) -> None:
    """Time every form, and print milliseconds of one row and of the others how often float32 is as long."""
    forms = open_forms(width, outputs, threads)
    fastest: dict[str, dict[int, float]] = {name: {} for name in forms}
    for rows, calls in ROWS.items():
        x = np.random.default_rng(1).standard_normal((rows, width), np.float32)
        for _ in range(calls + 1):  # the first call of a form is slower than the others
            for name, session in forms.items():
                start = time.perf_counter()
                session.run(None, {"x": x})
                fastest[name][rows] = min(fastest[name].get(rows, np.inf), time.perf_counter() - start)
    table = Table(
        "form", *(f"{rows} rows" for rows in ROWS), title=f"[M, {width}] x [{width}, {outputs}], {cpu_name()}"
    )
    for name, times in fastest.items():
        cells = [f"{seconds * 1e3:.2f} ms" for seconds in times.values()]
        ratios = [f"{fastest['float32'][rows] / seconds:.2f}x" for rows, seconds in times.items()]
        table.add_row(name, *(f"{cell} ({ratio})" for cell, ratio in zip(cells, ratios, strict=True)))
    Console(width=160).print(table)
    if out is not None:
        about = {"cpu": cpu_name(), "threads": threads, "onnxruntime": ort.__version__, "width": width}
        times_ms = {name: {rows: seconds * 1e3 for rows, seconds in times.items()} for name, times in fastest.items()}
        out.write_text(json.dumps({"about": {**about, "outputs": outputs}, "milliseconds": times_ms}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
