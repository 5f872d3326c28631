"""The graphs of an artifact in a browser, run one by one on given inputs, and how far they are from those on a CPU.

Both sides run the same files on the same inputs, those of the CPU: tower, token table, prompt and one step. So limits
are those of what the graphs compute in, whatever their weights cost (`tolerances.yaml`). Where a graph rounds
activations to 8 bits as it runs, the least difference may become a whole step, and limits are those of 8 bits. Products
with blocks of integers are exempt: browsers compute them in float32, whatever level they ask for, and here so does the
CPU. Knows numbers and what `browser_graphs.js` takes; nothing about adapters.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from qwen3vl_export import contract
from qwen3vl_export.packaging.browsers import NEEDS_HALF, WASM, WEBGPU, YES, browser_support
from qwen3vl_export.runtime import Prepared, Qwen3VL
from qwen3vl_export.runtime.arrays import Floats
from qwen3vl_export.runtime.cache import layer_parts
from qwen3vl_export.runtime.decoder import decode, embed_generated, empty_cache
from qwen3vl_export.runtime.positions import next_positions

from ..harness.checks.stages import vision_finding
from ..harness.judging.measures import differences, logit_closeness
from ..harness.judging.outcome import Finding, Outcome, judge
from ..harness.judging.scales import tower_blocks
from ..harness.judging.verdicts import load_compute_profile, load_profile
from ..harness.sides.artifact.float_activations import changed_model, float_blocks, nodes_of, rounds_activations
from .chromium import HIDE_SUBGROUPS
from .npm import node_modules
from .site import Site, serve

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SCRIPT = Path(__file__).with_suffix(".js")
DEVICES = {WASM: "wasm", WEBGPU: "webgpu"}  # transformers.js's name of each
IN_8_BITS = "int8"  # the profile of graphs that round activations
VISION, EMBEDDINGS, PREFILL, DECODE = "vision", "embeddings", "prefill", "decode"  # stages of `tolerances.yaml`

Array = NDArray[Any]


@dataclass(frozen=True)
class Run:
    """One run of a graph.

    Attributes:
        inputs: all but the cache, which is that of the run before.
        expected: the output, computed on a CPU.
        rounds: whether the graph rounds activations.
    """

    graph: str
    inputs: Mapping[str, Array]
    output: str
    expected: Floats
    rounds: bool = False


@dataclass(frozen=True)
class Computed:
    """What a browser computed.

    Attributes:
        outputs: by stage.
        seconds: of loading (`load`) and of each stage.
    """

    outputs: Mapping[str, Floats]
    seconds: Mapping[str, float]


def runs_of(model: Qwen3VL, prepared: Prepared, rows: int = 0) -> dict[str, Run]:
    """The runs that a browser repeats, by stage, computed by this package's runtime on the CPU.

    Args:
        prepared: one prompt with its pictures.
        rows: of logits of the prompt; 0 is all.
    """
    model = changed_model(model, float_blocks)
    sessions, ids = model.sessions, prepared.input_ids
    features = model.encode_images(prepared.pixel_values, prepared.image_grid_thw)
    table_rows = sessions.run(contract.EMBED_TOKENS, {contract.INPUT_IDS: ids}, [contract.INPUTS_EMBEDS])[0]
    embeds, mask, positions = model.embed_inputs(ids, features), prepared.attention_mask, prepared.position_ids
    cache = empty_cache(sessions, 1, ids.shape[1] + 1)
    logits = decode(sessions, embeds, mask, positions, cache, rows)
    token = logits[:, -1:].argmax(-1)
    step_embeds = embed_generated(sessions, token)
    step_mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
    step_positions = next_positions(prepared.rope_deltas, ids.shape[1])
    step_logits = decode(sessions, step_embeds, step_mask, step_positions, cache, 1)
    facts, dtypes = model.facts, sessions.dtypes(contract.DECODER)
    dtype = dtypes[contract.INPUTS_EMBEDS]
    no_cache = np.zeros((1, facts.num_key_value_heads, 0, facts.head_dim), dtypes[contract.past_name(0, "key")])
    past = {contract.past_name(*part): no_cache for part in layer_parts(facts)}
    prompt = {**decoder_inputs(embeds.astype(dtype), mask, positions, rows), **past}
    step = decoder_inputs(step_embeds.astype(dtype), step_mask, step_positions, 1)
    pictures: dict[str, Array] = {
        contract.PIXEL_VALUES: prepared.pixel_values,
        contract.IMAGE_GRID_THW: prepared.image_grid_thw,
    }
    sessions.close()
    runs = {
        VISION: Run(contract.VISION_ENCODER, pictures, contract.IMAGE_FEATURES, features),
        EMBEDDINGS: Run(contract.EMBED_TOKENS, {contract.INPUT_IDS: ids}, contract.INPUTS_EMBEDS, table_rows),
        PREFILL: Run(contract.DECODER, prompt, contract.LOGITS, logits),
        DECODE: Run(contract.DECODER, step, contract.LOGITS, step_logits),
    }
    return {
        stage: replace(run, rounds=still_rounds(model.artifact.graph_path(run.graph))) for stage, run in runs.items()
    }


def still_rounds(path: Path) -> bool:
    """Whether a graph rounds activations where products with blocks of integers do not."""
    graph = float_blocks(onnx.load(path, load_external_data=False)).graph
    return any(map(rounds_activations, nodes_of(graph)))


def decoder_inputs(embeds: Array, mask: Array, positions: Array, rows: int) -> dict[str, Array]:
    """All inputs of the decoder but its cache."""
    return {
        contract.INPUTS_EMBEDS: embeds,
        contract.ATTENTION_MASK: mask,
        contract.POSITION_IDS: positions,
        contract.NUM_LOGITS_TO_KEEP: np.array(rows),
    }


def compute(
    browser: Browser, site: Site, folder: str, runs: Mapping[str, Run], device: str, dtype: str = ""
) -> Computed | str:
    """What a browser makes of the runs, or what it says why it cannot; the arguments are those of `call`."""
    named = {stage: as_json(run) for stage, run in runs.items()}
    result = call(browser, site, "run", folder, device, dtype, runs=named)
    if "error" in result:
        return str(result["error"])
    return Computed({stage: from_json(tensor) for stage, tensor in result["results"].items()}, result["seconds"])


def call(
    browser: Browser, site: Site, function: str, folder: str, device: str, dtype: str = "", **needs: Any
) -> dict[str, Any]:
    """The result of a function of `browser_graphs.js`, in a page of its own.

    Args:
        site: of `serve_artifacts`.
        folder: the artifact's.
        device: a key of `DEVICES`.
        dtype: the precision, by transformers.js's name; "" is the one without a suffix.
        needs: what else the function takes.
    """
    job = {
        "library": f"{site.url}/node_modules/@huggingface/transformers/dist/transformers.min.js",
        "wasm": f"{site.url}/node_modules/onnxruntime-web/dist/",
        "models": site.url,
        "name": folder,
        "device": DEVICES[device],
        "dtype": dtype,
        **needs,
    }
    context = browser.new_context()
    try:
        context.add_init_script(HIDE_SUBGROUPS)
        page = context.new_page()
        page.goto(f"{site.url}/{SCRIPT.name}")
        result: dict[str, Any] = page.evaluate(f"async (job) => (await import('/{SCRIPT.name}')).{function}(job)", job)
        return result
    finally:
        context.close()


def has_half(browser: Browser, site: Site) -> bool:
    """Whether the adapter has `shader-f16`."""
    page = browser.new_page()
    page.goto(f"{site.url}/{SCRIPT.name}")
    features = "async () => (await navigator.gpu?.requestAdapter())?.features.has('shader-f16') ?? false"
    answer: bool = page.evaluate(features)
    page.close()
    return answer


@contextmanager
def serve_artifacts(root: Path, artifacts: Mapping[str, Path]) -> Iterator[Site]:
    """A site with artifacts, by folder, and what `call` needs.

    Args:
        root: an empty directory.
    """
    with serve(root, {**artifacts, "node_modules": node_modules(), SCRIPT.name: SCRIPT}) as site:
        yield site


def as_json(run: Run) -> dict[str, Any]:
    inputs = {
        name: {"type": array.dtype.name, "dims": array.shape, "data": base64.b64encode(array.tobytes()).decode()}
        for name, array in run.inputs.items()
    }
    return {"graph": run.graph, "inputs": inputs, "output": run.output, "keeps": run.graph == contract.DECODER}


def from_json(tensor: Mapping[str, Any]) -> Floats:
    array: Floats = np.frombuffer(base64.b64decode(tensor["data"]), tensor["type"]).reshape(tensor["dims"])
    return array


def judge_runs(model: Qwen3VL, runs: Mapping[str, Run], computed: Computed) -> list[Outcome]:
    """Every run judged by what the graphs compute in."""
    computed_in = load_compute_profile(model.artifact.manifest.recipe["dtype"])
    judged = []
    for stage, run in runs.items():
        profile = load_profile(IN_8_BITS) if run.rounds else computed_in
        output = computed.outputs[stage]
        if stage == VISION:
            grid = run.inputs[contract.IMAGE_GRID_THW]
            finding = vision_finding(output, run.expected, tower_blocks(model.artifact.json_file("config.json")), grid)
        elif stage == EMBEDDINGS:
            wrong = differences(output, run.expected)
            finding = Finding({"differences": wrong, "scaled_max_abs": float(wrong or 0)}, output.size)
        else:
            finding = Finding(logit_closeness(output, run.expected), output.size)
        judged.append(judge(stage, model.artifact.manifest.name, finding, profile, computed.seconds[stage]))
    return judged


def complaints(
    model: Qwen3VL, runs: Mapping[str, Run], device: str, result: Computed | str, has_half: bool
) -> list[str]:
    """How a browser contradicts the packaging, or the CPU; nothing if it does not.

    Args:
        device: a key of `DEVICES`.
        has_half: whether the adapter has `shader-f16`.
    """
    answer = browser_support(model.artifact)[device]
    expected = answer.startswith(YES) and (has_half or NEEDS_HALF not in answer)
    where = f"{model.artifact.manifest.name}, {device}: the packaging says {answer}"
    if isinstance(result, str):
        return [f"{where}, the browser {result}"] if expected else []
    if not expected:
        return [f"{where}, the browser loads it"]
    return [f"{device}: {outcome.message}" for outcome in judge_runs(model, runs, result) if not outcome.passed]
