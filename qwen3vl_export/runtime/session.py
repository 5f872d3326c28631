"""onnxruntime sessions of one artifact: opened when first used, with errors a user can read.

Knows files, onnxruntime and its exceptions; nothing about what the graphs mean.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..artifact import Artifact
from ..contract import VISION_ENCODER, Facts
from ..errors import ArtifactError, InputError
from .external import check_external_data

GUARD = re.compile(r"Name:'guard: ([^']*)'")
DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int64)": np.dtype(np.int64),
}


class Sessions:
    """The graphs of an artifact, ready to run.

    Args:
        artifact: an artifact that was opened, so that its files are the ones the manifest lists.
        threads: threads of one operator; None leaves the number to onnxruntime.

    Raises:
        ArtifactError: this onnxruntime is older than the artifact needs.
    """

    def __init__(self, artifact: Artifact, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise InputError(f"threads is {threads}", "At least 1 works")
        check_onnxruntime(artifact)
        self.artifact = artifact
        self.threads = threads
        self._opened: dict[str, Any] = {}
        self._dtypes: dict[str, dict[str, np.dtype[Any]]] = {}

    @property
    def facts(self) -> Facts:
        return self.artifact.manifest.facts

    @property
    def shares_cache(self) -> bool:
        """Whether the decoder reads and writes its cache in place: it is made of `GroupQueryAttention` then."""
        return bool(self.artifact.manifest.recipe.get("target") == "ort")

    def dtypes(self, graph: str) -> dict[str, np.dtype[Any]]:
        """The numpy dtype of each input, optional ones included."""
        self.open(graph)
        return self._dtypes[graph]

    def open(self, graph: str) -> Any:
        """The session of one graph.

        Raises:
            ArtifactError: no such graph, external data outside the directory, or onnxruntime cannot load it.
        """
        if graph not in self._opened:
            path = self.artifact.graph_path(graph)
            check_external_data(path, self.artifact.root)
            session = load(path, session_options(graph, self.threads))
            inputs: list[Any] = [*session.get_inputs(), *session.get_overridable_initializers()]
            self._dtypes[graph] = {node.name: DTYPES[node.type] for node in inputs}
            self._opened[graph] = session
        return self._opened[graph]

    def run(self, graph: str, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> list[Any]:
        """Run one graph; inputs are cast to the dtypes it takes.

        Raises:
            InputError: a guard inside the graph refused the input; the message is the guard's.
        """
        session = self.open(graph)
        dtypes = self._dtypes[graph]
        cast: dict[str, NDArray[Any]] = {name: array.astype(dtypes[name], copy=False) for name, array in feeds.items()}
        with guarded(graph):
            results: list[Any] = session.run(list(outputs), cast)
        return results

    def run_bound(
        self, graph: str, binding: Any, feeds: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]
    ) -> None:
        """Run one graph on memory: `feeds` are read where they lie, `outputs` written where they lie.

        Args:
            binding: the session's `io_binding()`; what it holds besides stays bound.
            outputs: contiguous arrays of the shape and dtype the graph will write.

        Raises:
            InputError: as `run`.
        """
        dtypes = self._dtypes[graph]
        kept = {
            name: np.ascontiguousarray(array, dtypes[name]) for name, array in feeds.items()
        }  # alive during the run
        for name, array in kept.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        with guarded(graph):
            self.open(graph).run_with_iobinding(binding)


@contextlib.contextmanager
def guarded(graph: str) -> Iterator[None]:
    """Tells what a guard inside the graph refused."""
    try:
        yield
    except Exception as error:  # onnxruntime raises its own classes, which share no public base
        guard = GUARD.search(str(error))
        if guard is None:
            raise
        raise InputError(f"{graph}: {guard[1]}", "Pass inputs that belong to one another") from error


def session_options(graph: str, threads: int | None) -> Any:
    """The `onnxruntime.SessionOptions` that a graph runs with."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # nothing short of a crash: errors are raised and told once
    # Threads take work in ever smaller pieces, so that none waits for one that was interrupted. Decoding with int4
    # weights in blocks of 128: 5 to 11 % faster on two shared cores, by the shape of the product.
    options.add_session_config_entry("session.dynamic_block_base", "4")
    if threads is not None:
        options.intra_op_num_threads = threads
    if graph.startswith(VISION_ENCODER):
        options.enable_mem_pattern = False  # a memory plan per image size would be kept for ever
    return options


def load(path: Path, options: Any) -> Any:
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as in `Sessions.run`
        reason = " ".join(str(error).split())
        raise ArtifactError(f"{path}: onnxruntime {ort.__version__} cannot load it ({reason})", "Rebuild it") from error


def check_onnxruntime(artifact: Artifact) -> None:
    needed = artifact.manifest.min_onnxruntime
    if version_tuple(ort.__version__) < version_tuple(needed):
        raise ArtifactError(
            f"{artifact.root}: needs onnxruntime {needed}, this is {ort.__version__}",
            f"pip install 'onnxruntime>={needed}'",
        )


def version_tuple(version: str) -> tuple[int, ...]:
    """The leading numbers: `"1.23.0.dev4"` gives (1, 23, 0)."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in numbers[0].split(".")) if numbers else ()
