"""Where a result goes wrong: every stage of a build, and inside a stage every layer, against PyTorch.

Both sides get the inputs the runtime fed the graph. Layers are compared in the order PyTorch computes them; the first
that is off is the place to look, and the first stage that has it is the step of the build that broke it. Stages are
available if the artifact was built with --keep-stages; else only the graph as it was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from qwen3vl_export.contract import (
    ATTENTION_MASK,
    DECODER,
    IMAGE_FEATURES,
    IMAGE_GRID_THW,
    INPUTS_EMBEDS,
    PIXEL_VALUES,
    POSITION_IDS,
    VISION_ENCODER,
    decoder_output,
    past_name,
)
from qwen3vl_export.errors import ParityError
from qwen3vl_export.evidence import GraphTrail, Point
from qwen3vl_export.runtime.session import Sessions

from ..budget.split import within
from ..cases.matrix import Case
from ..checks.heads import HEAD_STAGES
from ..judging.measures import max_abs, nmse, token_cosines
from ..judging.outcome import Outcome
from ..sides.artifact.float_activations import change_of
from ..sides.artifact.foreign import ForeignSessions
from ..sides.artifact.probe import Layer, layers_of, module_of, open_reader
from ..sides.bench import Bench
from ..sides.hooks import Arrays, hook_graph
from ..sides.pytorch.forward import to_numpy
from ..sides.pytorch.reference import Reference

WRITTEN = "written"
STAGES_DIR = "stages"
SETTING = "divergence_nmse"
IN_MEMORY = 1 << 20  # bytes of a value of PyTorch; larger ones are kept on disk
AT_ONCE = 1 << 28  # bytes of values that a graph returns at once; it is run again for those beyond
TOWERS = {VISION_ENCODER: ("vision encoder", "vision block"), DECODER: ("decoder", "decoder layer")}


@dataclass(frozen=True)
class Trail:
    """The points of one graph on one case, stage by stage in the order of the build.

    Attributes:
        unmatched: PyTorch's layers that no stage has by name.
    """

    graph: str
    case: str
    points: Sequence[Point]
    unmatched: Sequence[str]
    stages: Sequence[str]

    @property
    def record(self) -> GraphTrail:
        """What `parity.json` holds of it."""
        return GraphTrail(
            self.graph, self.case, tuple(self.points), tuple(self.unmatched), tuple(self.stages), self.message
        )

    @property
    def first(self) -> Point | None:
        """The first point that is off in the first stage that has one."""
        return next((point for point in self.points if point.diverged), None)

    @property
    def message(self) -> str:
        """One or two sentences."""
        point = self.first
        compared = len({(value.module, value.side) for value in self.points})
        if point is None:
            whole = [stage for stage in self.stages if "/" not in stage]
            return f"{self.graph} on {self.case}: all {compared} values agree with PyTorch in {', '.join(whole)}"
        before = self.stages[: self.stages.index(point.stage)]
        in_stage = [value for value in self.points if value.stage == point.stage]
        agreed = in_stage[: in_stage.index(point)]
        text = f"{describe_point(self.graph, point)}: worst-token cosine {format_number(point.worst_token_cosine)}, "
        text += f"max abs {format_number(point.max_abs)}, after {point.stage}"
        text += f" ({before[-1]} still agrees)" if before else ""
        if agreed:
            text += f". The last value that agrees: {describe_point(self.graph, agreed[-1])}"
        return text


def format_number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"


def describe_point(graph: str, point: Point) -> str:
    """`decoder layer 3, self_attn.q_norm (RMSNormalization)`."""
    tower, unit = TOWERS[VISION_ENCODER if graph.startswith(VISION_ENCODER) else graph]
    parts = point.module.split(".")
    if len(parts) > 2 and parts[0] in ("layers", "blocks"):
        where = f"{unit} {parts[1]}, {'.'.join(parts[2:])}"
    else:
        where = f"{tower}, {point.module}"
    return f"{where} ({point.op})" if point.side == "output" else f"{where}, its input (made by {point.op})"


def trace_layers(bench: Bench, failures: Sequence[Outcome], default: Case) -> list[Trail]:
    """The trails of the vision encoder and the decoder, each on the first case that failed in it, else on `default`."""
    cases = {case.name: case for case in bench.cases}
    trails = []
    for stages, trace in (
        (("vision",), trace_vision),
        (("decoder", "prefill", "teacher_forced", "decode", "generate", *HEAD_STAGES), trace_decoder),
    ):
        names = [failure.case for failure in failures if failure.stage in stages and failure.case in cases]
        trail = trace(bench, cases[names[0]] if names else default)
        trails += [trail] if trail is not None else []
    return trails


def trace_vision(bench: Bench, case: Case) -> Trail | None:
    """The trail of the vision encoder; None if the case has no picture."""
    if not (case.has_pictures or case.is_vision_only):
        return None
    encoders = [encoder.graph for encoder in bench.artifact.manifest.encoders]
    graph, feeds = record_feeds(bench, encoders, lambda: bench.runtime.encode_images(*bench.vision_inputs(case)))
    reference = bench.reference
    pictures = feeds[PIXEL_VALUES], feeds[IMAGE_GRID_THW]
    with TemporaryDirectory() as directory:
        expected = record_modules(
            reference, "visual", lambda: reference.vision(*pictures, remember=False), Path(directory)
        )
        return trace_graph(bench, graph, case, feeds, expected)


def trace_decoder(bench: Bench, case: Case) -> Trail | None:
    """The trail of the decoder; None if the case does not run it."""
    if case.is_vision_only or DECODER not in bench.artifact.manifest.graphs:
        return None
    inputs = bench.inputs(case)
    start, mask = bench.reference.obtain(lambda: bench.reference.prefill(inputs)), inputs.attention_mask
    rows, positions = start.inputs_embeds, start.position_ids
    graph, feeds = record_feeds(bench, [DECODER], lambda: bench.runtime.decode(rows, mask, positions))
    reference = bench.reference
    call = (feeds[INPUTS_EMBEDS].astype(np.float32), feeds[ATTENTION_MASK], feeds[POSITION_IDS])
    seen = feeds[ATTENTION_MASK].astype(bool)
    facts = bench.artifact.manifest.facts
    empty = np.zeros((len(mask), facts.num_key_value_heads, 0, facts.head_dim), np.float32)
    past = {past_name(index, part): empty for index in range(facts.num_hidden_layers) for part in ("key", "value")}
    with TemporaryDirectory() as directory:
        expected = record_modules(reference, "language_model", lambda: reference.decoder(*call), Path(directory))
        return trace_graph(bench, graph, case, {**past, **feeds}, expected, None if seen.all() else seen)


def record_feeds(bench: Bench, graphs: Sequence[str], call: Callable[[], Any]) -> tuple[str, Arrays]:
    """The first of `graphs` that the runtime runs inside `call`, and its feeds."""
    records: list[tuple[str, Arrays]] = []
    with ExitStack() as stack:
        for graph in graphs:

            def record(feeds: Arrays, graph: str = graph) -> Arrays:
                records.append((graph, feeds))
                return feeds

            stack.enter_context(hook_graph(bench, graph, before=record))
        call()
    bench.make_room()
    return records[0]


ModuleValues = dict[tuple[str, str], NDArray[Any]]  # (module, "input" or "output") -> value, in the order computed


def record_modules(
    reference: Reference, tower: str, compute: Callable[[], NDArray[Any]], directory: Path
) -> ModuleValues:
    """Inputs and outputs of every module of a tower that has parameters itself, and the result as `output`; large ones
    are kept in `directory` and mapped from there."""
    values: ModuleValues = {}

    def keep(key: tuple[str, str], array: NDArray[Any]) -> None:
        if array.nbytes > IN_MEMORY:
            path = directory / f"{len(values)}.npy"
            np.save(path, array)
            array = np.load(path, mmap_mode="r")
        values[key] = array

    def record(module: str) -> Callable[..., None]:
        def hook(_: Any, inputs: tuple[Any, ...], output: Any) -> None:
            if inputs and hasattr(inputs[0], "detach"):
                keep((module, "input"), to_numpy(inputs[0]))
            keep((module, "output"), to_numpy(output))

        return hook

    with ExitStack() as stack:
        for name, module in reference.model.named_modules():
            layer = module_of(f"{name}.weight")
            if (
                layer is not None
                and (f".{tower}." in f".{name}." or name == "lm_head")
                and list(module.parameters(False))
            ):
                stack.callback(module.register_forward_hook(record(layer)).remove)
        keep(("output", "output"), compute())
    return values


def trace_graph(
    bench: Bench, graph: str, case: Case, feeds: Arrays, expected: ModuleValues, seen: NDArray[np.bool_] | None = None
) -> Trail:
    """The trail of one graph.

    Args:
        expected: PyTorch's values.
        seen: bool [B, S], the tokens that are not padding; None if all are.

    Raises:
        ParityError: the profile has no limit for a layer.
    """
    if SETTING not in bench.profile.settings:
        raise ParityError(f"tolerances.yaml: profile {bench.profile.name} has no setting {SETTING}", "Add one")
    limit = bench.profile.settings[SETTING]
    sessions = bench.runtime.sessions
    output = IMAGE_FEATURES if graph.startswith(VISION_ENCODER) else decoder_output(bench.artifact.manifest.facts).name
    if isinstance(sessions, ForeignSessions):
        feeds, output = sessions.translate_feeds(graph, feeds), sessions.name_in_graph(graph, output, "outputs")
    points: list[Point] = []
    matched: set[str] = set()
    stages = dict(stages_of(bench, graph))
    for stage, path in stages.items():
        for point, module in compare_stage(stage, path, output, feeds, expected, seen, limit, sessions):
            points.append(point)
            matched.add(module)
    unmatched = [module for module, side in expected if side == "output" and module not in matched]
    return Trail(graph, case.name, tuple(points), tuple(unmatched), tuple(stages))


def stages_of(bench: Bench, graph: str) -> Iterator[tuple[str, Path]]:
    """Stage and file of a graph: stages and their steps in the order of the build, then the written file."""
    root, written = bench.artifact.root / STAGES_DIR, bench.artifact.graph_path(graph)
    for record in bench.artifact.manifest.graphs[graph].get("stages", ()):
        stage = record["stage"]
        for path in sorted(
            (root / stage).glob(f"*/{written.name}"), key=lambda path: int(path.parent.name.split("-")[0])
        ):
            yield f"{stage}/{path.parent.name}", path
        if (root / stage / written.name).is_file():
            yield stage, root / stage / written.name
    yield WRITTEN, written


def compare_stage(
    stage: str,
    path: Path,
    output: str,
    feeds: Arrays,
    expected: ModuleValues,
    seen: NDArray[np.bool_] | None,
    limit: float,
    sessions: Sessions,
) -> Iterator[tuple[Point, str]]:
    """The points of one stage, in the order PyTorch computes them."""
    change = change_of(sessions)
    layers = {layer.module: layer for layer in layers_of(change(onnx.load(path, load_external_data=False)))}
    layers["output"] = Layer("output", output, None, "", output)
    requests = [
        (module, side, layers[module], name)
        for module, side in expected
        if module in layers and (name := layers[module].input if side == "input" else layers[module].output) is not None
    ]
    read = open_reader(path, [name for *_, name in requests], change=change, opener=sessions.opener)
    sized = ((request, expected[request[0], request[1]].nbytes) for request in requests)
    for group in within(sized, AT_ONCE):
        for (module, side, layer, _), value in zip(group, read(feeds, [name for *_, name in group]), strict=True):
            aligned = align(value, expected[module, side])
            if aligned is None:
                continue
            truth = token_rows(expected[module, side], seen)
            candidates = [token_rows(aligned, layout) for layout in token_layouts(seen)]
            candidate = min(candidates, key=lambda rows: l1_distance(rows, truth))
            error = nmse(candidate, truth)
            cosine = float(token_cosines(candidate, truth).min()) if candidate.size else None
            op = layer.op if side == "output" else layer.maker or "the runtime"
            diverged = error is None or not error <= limit
            yield Point(stage, module, side, op, error, cosine, max_abs(candidate, truth), diverged), module


def align(value: NDArray[Any], truth: NDArray[Any]) -> NDArray[Any] | None:
    """`value` in the shape of `truth`, heads before or after tokens, whichever is closer; None if its size differs."""
    if value.size != truth.size or value.dtype == np.bool_:
        return None
    layouts = [value.reshape(truth.shape)]
    if value.ndim == 4:
        layouts.append(value.swapaxes(1, 2).reshape(truth.shape))
    return min(layouts, key=lambda layout: l1_distance(layout, truth))


def l1_distance(candidate: NDArray[Any], truth: NDArray[Any]) -> float:
    return float(np.nan_to_num(np.abs(candidate - truth), nan=np.inf).sum())


def token_layouts(seen: NDArray[np.bool_] | None) -> list[NDArray[np.bool_] | None]:
    """Where a batch's tokens may be inside a graph: at their places in the input, or at the front of their rows."""
    return [None] if seen is None else [seen, np.sort(seen, axis=1)[:, ::-1]]


def token_rows(array: NDArray[Any], seen: NDArray[np.bool_] | None) -> NDArray[Any]:
    """[tokens, width] without padding."""
    if seen is not None and array.shape[: seen.ndim] == seen.shape:
        array = array[seen]
    return array.reshape(-1, array.shape[-1])
