"""onnxruntime sessions of one artifact: opened when first used or ahead of it, with readable errors.

Knows files, onnxruntime and its exceptions; nothing about what the graphs mean.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from weakref import finalize

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..artifact import Artifact
from ..contract import FOLD_ANY_SIZE, OUT_OF_RANGE, VISION_ENCODER, Facts
from ..errors import ArtifactError, InputError
from ..manifest import MANIFEST
from ..promise import cache_dtype
from .devices import CPU, HOST, Device, start_session
from .external import check_external_data
from .memory import memory_of
from .opening import open_in_threads, stop_opening
from .saturation import EXACT, multiplies_integers, saturates

MAX_THREADS = 1024  # onnxruntime takes minutes to start 100,000, if it can
DATA_FOLDER = "session.model_external_initializers_file_folder_path"  # of external data, where a model has no file
GUARD = re.compile(r"Name:'guard: ([^']*)'")
OUT_OF_MEMORY = re.compile("bad_alloc|Failed to allocate memory")
DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(int64)": np.dtype(np.int64),
}

Opener = Callable[..., Any]


class Sessions:
    """The graphs of an artifact, ready to run.

    Args:
        artifact: as returned by `open_artifact`, so that its files are those in the manifest.
        threads: threads per operator; None leaves the number to onnxruntime.
        opener: opens a graph in place of `load_session`, whose arguments it takes; its result is used as an
            `onnxruntime.InferenceSession`.
        device: where the graphs run, as returned by `choose_device`.

    Raises:
        ArtifactError: this onnxruntime is older than the artifact needs.
        InputError: `threads` is below 1 or above 1024, or the device reads no cache such as this artifact's.
    """

    def __init__(
        self, artifact: Artifact, threads: int | None = None, opener: Opener | None = None, device: Device = CPU
    ) -> None:
        if threads is not None and not 1 <= threads <= MAX_THREADS:
            raise InputError(f"threads is {threads}", f"Use 1 to {MAX_THREADS}; more than processors gain nothing")
        check_onnxruntime(artifact)
        check_cache(artifact, device)
        self.artifact = artifact
        self.threads = threads
        self.device = device
        self.opener = opener or partial(load_session, device=device)
        self.memory = memory_of(device)
        self._locks = {graph: Lock() for graph in artifact.manifest.graphs}
        self._threads: list[Thread] = []
        self._options: dict[str, Any] = {}
        self._sessions: dict[str, Any] = {}
        self._dtypes: dict[str, dict[str, np.dtype[Any]]] = {}

    @property
    def facts(self) -> Facts:
        return self.artifact.manifest.facts

    @property
    def shares_cache(self) -> bool:
        """Whether the decoder reads and writes its cache in place where both are one memory, which
        `GroupQueryAttention` does."""
        return bool(self.artifact.manifest.recipe.get("target") == "ort")

    def dtypes(self, graph: str) -> dict[str, np.dtype[Any]]:
        """The numpy dtype of each input, optional ones included."""
        self.open(graph)
        return self._dtypes[graph]

    def open(self, graph: str) -> Any:
        """The session of one graph.

        Raises:
            ArtifactError: no such graph, external data outside the directory, inputs or outputs that are not those
                in the manifest, or onnxruntime cannot load it.
        """
        if graph not in self._sessions:
            path = self.artifact.graph_path(graph)
            with self._locks[graph]:
                if graph not in self._sessions:
                    self._open(graph, path)
        return self._sessions[graph]

    def _open(self, graph: str, path: Path) -> None:
        check_external_data(path, self.artifact.root, self.artifact.manifest.files)
        self._options[graph] = session_options(graph, self.threads)
        session = self.load(path, self._options[graph])
        inputs: list[Any] = [*session.get_inputs(), *session.get_overridable_initializers()]
        check_signature(path, self.artifact.manifest.graphs[graph], inputs, session.get_outputs())
        self._dtypes[graph] = {node.name: DTYPES[node.type] for node in inputs}
        self._sessions[graph] = session

    def open_ahead(self, graphs: Iterable[str]) -> None:
        """Begin to open graphs that will soon be used, each in a thread of its own; `open` waits for the one it needs.

        A graph that cannot be opened raises when it is used.
        """
        if not self._threads:
            finalize(self, stop_opening, self._threads, self._options)
        self._threads += open_in_threads(self.open, [graph for graph in graphs if graph not in self._sessions])

    def load(self, path: Path, options: Any) -> Any:
        """A new session of a graph's file."""
        return self.opener(path, options)

    def close(self) -> None:
        """Free the memory of every open session; each is opened again when it is next used."""
        self._sessions.clear()

    def run(self, graph: str, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> list[Any]:
        """Run one graph; inputs are cast to the dtypes it takes.

        Raises:
            InputError: a guard inside the graph rejected the input; the message is the guard's.
            ArtifactError: a guard of a float16 graph found activations that it cannot hold.
        """
        session = self.open(graph)
        dtypes = self._dtypes[graph]
        cast: dict[str, NDArray[Any]] = {name: array.astype(dtypes[name], copy=False) for name, array in feeds.items()}
        with translate_guards(graph):
            results: list[Any] = session.run(list(outputs), cast)
        return results

    def run_bound(
        self, graph: str, binding: Any, feeds: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]
    ) -> None:
        """Run one graph without copies: it reads `feeds` and writes `outputs` in place.

        Args:
            binding: the session's `io_binding()`; other inputs and outputs bound to it stay bound.
            outputs: contiguous arrays of the shape and dtype the graph will write.

        Raises:
            InputError, ArtifactError: as `run`.
        """
        dtypes = self._dtypes[graph]
        # Kept alive until the run ends: the binding has only their addresses.
        inputs = {name: np.ascontiguousarray(array, dtypes[name]) for name, array in feeds.items()}
        for name, array in inputs.items():
            binding.bind_input(name, HOST, 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            binding.bind_output(name, HOST, 0, array.dtype, array.shape, array.ctypes.data)
        with translate_guards(graph):
            binding.synchronize_inputs()  # a device may still be copying; the CPU never is
            self.open(graph).run_with_iobinding(binding)
            binding.synchronize_outputs()


@contextlib.contextmanager
def translate_guards(graph: str) -> Iterator[None]:
    """Turn the failure of a guard inside the graph into an error with the guard's message: an `ArtifactError` where
    the graph's precision is to blame, else an `InputError`."""
    try:
        yield
    except Exception as error:  # onnxruntime raises its own classes, which share no public base
        if OUT_OF_MEMORY.search(str(error)):
            raise MemoryError(f"in the graph {graph}") from error
        guard = GUARD.search(str(error))
        if guard is None:
            raise
        if guard[1] == OUT_OF_RANGE:
            raise ArtifactError(f"{graph}: {guard[1]}", "Use an artifact of higher precision") from error
        raise InputError(f"{graph}: {guard[1]}", "Pass inputs that belong together") from error


def check_signature(path: Path, entry: Mapping[str, Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    """Compare what a graph reads and writes with its entry in the manifest; another exporter's package has none.

    Args:
        inputs, outputs: onnxruntime's `NodeArg`s.

    Raises:
        ArtifactError: they differ, or an input has a dtype that nothing here feeds.
    """
    for side, nodes in (("inputs", inputs), ("outputs", outputs)):
        recorded = entry.get(side)
        if recorded is None:
            continue
        shapes = {node.name: [dim if isinstance(dim, int) else None for dim in node.shape] for node in nodes}
        expected = {
            name: [dim if isinstance(dim, int) else None for dim in tensor["shape"]]
            for name, tensor in recorded.items()
        }
        if shapes != expected:
            raise ArtifactError(f"{path}: its {side} are not those in {MANIFEST}", "Rebuild the artifact")
    for node in inputs:
        if node.type not in DTYPES:
            raise ArtifactError(f"{path}: its input {node.name} is a {node.type}", "Rebuild the artifact")


def session_options(graph: str, threads: int | None) -> Any:
    """The `onnxruntime.SessionOptions` that a graph runs with."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # fatal only: errors are raised as exceptions anyway
    # Threads take work in ever smaller pieces, so that none waits for one that was preempted. Decoding with int4
    # weights in blocks of 128: 5 to 11 % faster on two shared cores, depending on the shape of the product.
    options.add_session_config_entry("session.dynamic_block_base", "4")
    options.add_session_config_entry(*FOLD_ANY_SIZE)
    if threads is not None:
        options.intra_op_num_threads = threads
    if graph.startswith(VISION_ENCODER):
        options.enable_mem_pattern = False  # it would keep a memory plan for every image size
    return options


def load_session(path: Path, options: Any, model: bytes | None = None, device: Device = CPU) -> Any:
    """An `onnxruntime.InferenceSession` on a device.

    Args:
        model: to open in place of the one in the file; its external data is beside the file.

    Raises:
        ArtifactError: the graph cannot be loaded.
        InputError: the device's provider does not start any more.
    """
    if model is not None:
        set_once(options, DATA_FOLDER, str(path.parent.resolve()))
    try:
        if saturates() and multiplies_integers(path.read_bytes() if model is None else model):
            set_once(options, EXACT, "1")
        return start_session(device, model or str(path), options)
    except InputError:
        raise
    except Exception as error:  # as in `translate_guards`
        reason = " ".join(str(error).split())
        raise ArtifactError(f"{path}: onnxruntime {ort.__version__} cannot load it ({reason})", "Rebuild it") from error


def set_once(options: Any, name: str, value: str) -> None:
    """Set an entry of a session's configuration; onnxruntime warns of entries that are set twice."""
    try:
        options.get_session_config_entry(name)
    except RuntimeError:
        options.add_session_config_entry(name, value)


def check_onnxruntime(artifact: Artifact) -> None:
    """Raise an `ArtifactError` if this onnxruntime is older than the artifact needs."""
    needed = artifact.manifest.min_onnxruntime
    if version_tuple(ort.__version__) < version_tuple(needed):
        raise ArtifactError(
            f"{artifact.root}: needs onnxruntime {needed}, this is {ort.__version__}",
            f"pip install 'onnxruntime>={needed}'",
        )


def check_cache(artifact: Artifact, device: Device) -> None:
    """Raise an `InputError` if a device cannot read and write the artifact's cache in place, as far as is known."""
    if cache_dtype(artifact.manifest.recipe) != "float" and not device.provider.reads_integers:
        raise InputError(
            f"{artifact.root}: keys and values are stored in 8 bits, which {device.name} is not known to read",
            "Run it on the CPU, or build it with quantization: {cache: {method: none}}",
        )


def version_tuple(version: str) -> tuple[int, ...]:
    """The leading numbers: `"1.23.0.dev4"` gives (1, 23, 0)."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in numbers[0].split(".")) if numbers else ()
