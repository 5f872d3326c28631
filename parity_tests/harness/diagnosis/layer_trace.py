"""Where a result goes wrong: every stage of a build, and inside a stage every layer, against PyTorch.

Both sides get the inputs the runtime fed the graph. Layers are compared in the order PyTorch computes them; the first
that is off is the place to look, and the first stage that has it is the step of the build that broke it. Stages are
there if the artifact was built with --keep-stages; else only the graph as it was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
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
    LOGITS,
    PIXEL_VALUES,
    POSITION_IDS,
    VISION_ENCODER,
    past_name,
)
from qwen3vl_export.errors import ParityError

from ..cases.matrix import Case
from ..judging.measures import max_abs, nmse, token_cosines
from ..judging.outcome import Outcome
from ..sides.bench import Bench
from ..sides.foreign import ForeignSessions
from ..sides.hooks import Arrays, hooked
from ..sides.probe import Layer, layers_of, module_of, values_at
from ..sides.reference import Reference

WRITTEN = "written"
STAGES_DIR = "stages"
SETTING = "divergence_nmse"
OUTPUTS = {VISION_ENCODER: IMAGE_FEATURES, DECODER: LOGITS}
TOWERS = {VISION_ENCODER: ("vision encoder", "vision block"), DECODER: ("decoder", "decoder layer")}


@dataclass(frozen=True)
class Point:
    """One value inside a graph beside PyTorch's: the input or the output of a layer, or the graph's own output."""

    stage: str
    module: str
    side: str
    op: str
    nmse: float | None
    worst_token_cosine: float | None
    max_abs: float | None
    diverged: bool


@dataclass(frozen=True)
class Trail:
    """The points of one graph on one case, stage by stage in the order of the build.

    Attributes:
        unmatched: layers of PyTorch's that no stage has by name.
    """

    graph: str
    case: str
    points: Sequence[Point]
    unmatched: Sequence[str]
    stages: Sequence[str]

    @property
    def first(self) -> Point | None:
        """The first point that is off in the first stage that has one."""
        return next((point for point in self.points if point.diverged), None)

    @property
    def message(self) -> str:
        """One or two sentences for a person."""
        point = self.first
        compared = len({(one.module, one.side) for one in self.points})
        if point is None:
            whole = [stage for stage in self.stages if "/" not in stage]
            return f"{self.graph} on {self.case}: all {compared} values agree with PyTorch in {', '.join(whole)}"
        before = self.stages[: self.stages.index(point.stage)]
        same = [one for one in self.points if one.stage == point.stage]
        agreed = same[: same.index(point)]
        text = f"{place(self.graph, point)}: worst-token cosine {shown(point.worst_token_cosine)}, "
        text += f"max abs {shown(point.max_abs)}, after {point.stage}"
        text += f" ({before[-1]} still agrees)" if before else ""
        if agreed:
            text += f". The last value that agrees: {place(self.graph, agreed[-1])}"
        return text


def shown(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"


def place(graph: str, point: Point) -> str:
    """`decoder layer 3, self_attn.q_norm (RMSNormalization)`."""
    tower, unit = TOWERS[VISION_ENCODER if graph.startswith(VISION_ENCODER) else graph]
    parts = point.module.split(".")
    if len(parts) > 2 and parts[0] in ("layers", "blocks"):
        where = f"{unit} {parts[1]}, {'.'.join(parts[2:])}"
    else:
        where = f"{tower}, {point.module}"
    return f"{where} ({point.op})" if point.side == "output" else f"{where}, its input (made by {point.op})"


def bisect(bench: Bench, failures: Sequence[Outcome], case: Case) -> list[Trail]:
    """The trails of the vision encoder and the decoder; on `case`, or on the first case that failed in that graph."""
    cases = {one.name: one for one in bench.cases}
    found = []
    for stages, walk in (
        (("vision",), vision_trail),
        (("decoder", "prefill", "teacher_forced", "decode", "generate"), decoder_trail),
    ):
        names = [failure.case for failure in failures if failure.stage in stages and failure.case in cases]
        chosen = cases[names[0]] if names else case
        trail = walk(bench, chosen)
        found += [trail] if trail is not None else []
    return found


def vision_trail(bench: Bench, case: Case) -> Trail | None:
    """None if the case has no picture."""
    if not (case.has_pictures or case.is_vision_only):
        return None
    encoders = [encoder.graph for encoder in bench.artifact.manifest.encoders]
    graph, feeds = fed(bench, encoders, lambda: bench.encode(*bench.vision_inputs(case)))
    reference = bench.reference
    wanted = recorded(
        reference, "visual", lambda: reference.vision(feeds[PIXEL_VALUES], feeds[IMAGE_GRID_THW], remember=False)
    )
    return trail_of(bench, graph, case, feeds, wanted)


def decoder_trail(bench: Bench, case: Case) -> Trail | None:
    """None if the case runs no decoder."""
    if case.is_vision_only or DECODER not in bench.artifact.manifest.graphs:
        return None
    start = bench.reference.prefill(bench.inputs(case))
    mask = bench.inputs(case).attention_mask
    graph, feeds = fed(bench, [DECODER], lambda: bench.decode(start.inputs_embeds, mask, start.position_ids))
    reference = bench.reference
    inputs = (feeds[INPUTS_EMBEDS].astype(np.float32), feeds[ATTENTION_MASK], feeds[POSITION_IDS])
    wanted = recorded(reference, "language_model", lambda: reference.decoder(*inputs))
    seen = feeds[ATTENTION_MASK].astype(bool)
    facts = bench.artifact.manifest.facts
    empty = np.zeros((len(mask), facts.num_key_value_heads, 0, facts.head_dim), np.float32)
    past = {past_name(index, part): empty for index in range(facts.num_hidden_layers) for part in ("key", "value")}
    return trail_of(bench, graph, case, {**past, **feeds}, wanted, None if seen.all() else seen)


def fed(bench: Bench, graphs: Sequence[str], call: Callable[[], Any]) -> tuple[str, Arrays]:
    """The first of `graphs` that `call` makes the runtime run, and what it was given."""
    seen: list[tuple[str, Arrays]] = []
    with ExitStack() as stack:
        for graph in graphs:

            def note(feeds: Arrays, graph: str = graph) -> Arrays:
                seen.append((graph, feeds))
                return feeds

            stack.enter_context(hooked(bench, graph, before=note))
        call()
    return seen[0]


Recorded = dict[tuple[str, str], NDArray[Any]]  # (module, "input" or "output") -> value, in the order computed


def recorded(reference: Reference, tower: str, compute: Callable[[], NDArray[Any]]) -> Recorded:
    """Inputs and outputs of every module of a tower that has parameters of its own, and the result as `output`."""
    found: Recorded = {}

    def note(module: str) -> Callable[..., None]:
        def hook(_: Any, given: tuple[Any, ...], output: Any) -> None:
            if given and hasattr(given[0], "detach"):
                found[module, "input"] = given[0].detach().numpy()
            found[module, "output"] = output.detach().numpy()

        return hook

    with ExitStack() as stack:
        for name, module in reference.model.named_modules():
            own = module_of(f"{name}.weight")
            if (
                own is not None
                and (f".{tower}." in f".{name}." or name == "lm_head")
                and list(module.parameters(False))
            ):
                stack.callback(module.register_forward_hook(note(own)).remove)
        found["output", "output"] = compute()
    return found


def trail_of(
    bench: Bench, graph: str, case: Case, feeds: Arrays, wanted: Recorded, seen: NDArray[np.bool_] | None = None
) -> Trail:
    if SETTING not in bench.profile.settings:
        raise ParityError(f"tolerances.yaml: profile {bench.profile.name} has no setting {SETTING}", "Add one")
    limit = bench.profile.settings[SETTING]
    sessions = bench.runtime.sessions
    output = OUTPUTS[VISION_ENCODER if graph.startswith(VISION_ENCODER) else graph]
    if isinstance(sessions, ForeignSessions):
        feeds, output = sessions.to_graph(graph, feeds), sessions.own_name(graph, output, "outputs")
    points: list[Point] = []
    matched: set[str] = set()
    stages = dict(stages_of(bench, graph))
    for stage, path in stages.items():
        for point, module in compare(stage, path, output, feeds, wanted, seen, limit):
            points.append(point)
            matched.add(module)
    unmatched = [module for module, side in wanted if side == "output" and module not in matched]
    return Trail(graph, case.name, tuple(points), tuple(unmatched), tuple(stages))


def stages_of(bench: Bench, graph: str) -> Iterator[tuple[str, Path]]:
    """Stage and file of a graph: the kept stages and their steps in the order of the build, then the written file."""
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


def compare(
    stage: str,
    path: Path,
    output: str,
    feeds: Arrays,
    wanted: Recorded,
    seen: NDArray[np.bool_] | None,
    limit: float,
) -> Iterator[tuple[Point, str]]:
    """The points of one stage, in the order PyTorch computes them."""
    layers = {layer.module: layer for layer in layers_of(onnx.load(path, load_external_data=False))}
    layers["output"] = Layer("output", output, None, "", output)
    asked = [
        (module, side, layers[module], name)
        for module, side in wanted
        if module in layers and (name := layers[module].input if side == "input" else layers[module].output) is not None
    ]
    values = values_at(path, [name for *_, name in asked], feeds)
    for (module, side, layer, _), value in zip(asked, values, strict=True):
        fitted = fit(value, wanted[module, side])
        if fitted is None:
            continue
        truth = rows(wanted[module, side], seen)
        found = min((rows(fitted, place) for place in places(seen)), key=lambda rows: distance(rows, truth))
        error = nmse(found, truth)
        cosine = float(token_cosines(found, truth).min()) if found.size else None
        op = layer.op if side == "output" else layer.maker or "the runtime"
        diverged = error is None or not error <= limit
        yield Point(stage, module, side, op, error, cosine, max_abs(found, truth), diverged), module


def fit(value: NDArray[Any], truth: NDArray[Any]) -> NDArray[Any] | None:
    """`value` in the shape of `truth`, heads before or after tokens, whichever is closer; None if its size differs."""
    if value.size != truth.size or value.dtype == np.bool_:
        return None
    layouts = [value.reshape(truth.shape)]
    if value.ndim == 4:
        layouts.append(value.swapaxes(1, 2).reshape(truth.shape))
    return min(layouts, key=lambda layout: distance(layout, truth))


def distance(found: NDArray[Any], truth: NDArray[Any]) -> float:
    return float(np.nan_to_num(np.abs(found - truth), nan=np.inf).sum())


def places(seen: NDArray[np.bool_] | None) -> list[NDArray[np.bool_] | None]:
    """Where a batch's tokens can lie inside a graph: as they were given, or moved to the front of their rows."""
    return [None] if seen is None else [seen, np.sort(seen, axis=1)[:, ::-1]]


def rows(array: NDArray[Any], seen: NDArray[np.bool_] | None) -> NDArray[Any]:
    """[tokens, width], padding left out."""
    if seen is not None and array.shape[: seen.ndim] == seen.shape:
        array = array[seen]
    return array.reshape(-1, array.shape[-1])
