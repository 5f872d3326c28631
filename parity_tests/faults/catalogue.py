"""Mistakes planted on purpose: each is a known way to get Qwen3-VL wrong, and verification must find every one.

A fault copies a good artifact and breaks one thing: in a graph, in the weights, in a setting, or in the runtime while
it is verified. The size and sha256 of a broken file are recorded in the manifest, so that only the numbers can reveal
it; one fault leaves the old record. To add a fault, add a function to `graphs.py`, `weights.py`, `runtime.py` or
`heads.py`, and a line to `FAULTS`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import onnx
from onnx import ModelProto

from qwen3vl_export.artifact import Artifact, open_artifact
from qwen3vl_export.contract import DECODER, EMBEDDINGS, VISION_ENCODER, Facts
from qwen3vl_export.hash_cache import sha256_file
from qwen3vl_export.manifest import MANIFEST, FileRecord
from qwen3vl_export.promise import CALIBRATED, DEQUANTIZED, second_decoder

from ..harness.sides.bench import Bench
from . import graphs, heads, runtime, weights
from .forms import INT8_DYNAMIC, LEVEL_4, Form
from .weights import Weights

IMAGE_SETTINGS = "preprocessor_config.json"
TEMPLATE = "chat_template.jinja"
Change = Callable[[Artifact], list[Path]]  # breaks files of an artifact; returns those it changed


@dataclass(frozen=True)
class Fault:
    """One planted mistake, and what verification must report.

    Attributes:
        name: also the id of its test.
        stage: the first stage that must fail; "files" if the artifact must be refused.
        says: a part of the failure's message, which names the area.
        change: breaks the files; None changes none.
        during: breaks the runtime while it is verified.
        graphs: the graphs whose results change; None if any check may be affected.
        sealed: whether the manifest records the broken files.
        recipe: the recipe of the good artifact.
    """

    name: str
    stage: str
    says: str
    change: Change | None = None
    during: Callable[[Bench], AbstractContextManager[None]] = lambda bench: nullcontext()
    graphs: frozenset[str] | None = None
    sealed: bool = True
    recipe: str = "tiny"
    form: Form | None = None  # in which the good artifact is stored

    def plant(self, good: Path, out: Path) -> Path:
        """A copy of the artifact `good` at `out`, with this mistake in its files."""
        shutil.copytree(good, out, ignore=shutil.ignore_patterns("stages"))
        artifact = open_artifact(out, check=False)
        changed = []
        if self.form is not None:
            artifact, path = self.form.apply(artifact)
            changed.append(path)
        changed += self.change(artifact) if self.change is not None else []
        seal(artifact, changed if self.sealed else [])
        return out


def seal(artifact: Artifact, changed: list[Path]) -> None:
    """Record changed files in the manifest, as a build would, and drop the records of deleted ones."""
    files = {name: record for name, record in artifact.manifest.files.items() if (artifact.root / name).is_file()}
    for path in changed:
        files[path.relative_to(artifact.root).as_posix()] = FileRecord(path.stat().st_size, sha256_file(path))
    (artifact.root / MANIFEST).write_text(replace(artifact.manifest, files=files).to_json(), "utf-8")


def change_graph(graph: str, edit: Callable[[ModelProto, Facts], None], artifact: Artifact) -> list[Path]:
    """Change a graph in every file that a runtime may load it from."""
    path = artifact.graph_path(graph)
    paths = [file for file in (path, path.with_name(second_decoder(path.name))) if file.is_file()]
    for file in dict.fromkeys(paths):
        model = onnx.load(file, load_external_data=False)
        edit(model, artifact.manifest.facts)
        onnx.save(model, file)
    return paths


def change_weights(graph: str, edit: Callable[[Weights, Facts], None], artifact: Artifact) -> list[Path]:
    edit(Weights(artifact.graph_path(graph)), artifact.manifest.facts)
    return [artifact.root / name for name in artifact.manifest.graphs[graph]["data"]]


def change_setting(name: str, edit: Callable[[str], str], artifact: Artifact) -> list[Path]:
    path = artifact.root / name
    path.write_text(edit(path.read_text("utf-8")), "utf-8")
    return [path]


def quantized(fault: Fault) -> Fault:
    """The same mistake in the 4-bit artifact, to be found by comparison with the artifact's dequantized weights."""
    return replace(fault, name=f"{fault.name}-int4", stage=f"{DEQUANTIZED}{fault.stage}", recipe="tiny-int4")


def rounding(fault: Fault, form: Form, recipe: str) -> Fault:
    """The same mistake in an artifact that rounds activations as well, to be found in the same way."""
    return replace(quantized(fault), name=f"{fault.name}-{form.name}", recipe=recipe, form=form)


def in_graph(name: str, graph: str, edit: Callable[[ModelProto, Facts], None], stage: str, says: str) -> Fault:
    return Fault(name, stage, says, partial(change_graph, graph, edit), graphs=frozenset({graph}))


def in_weights(name: str, graph: str, edit: Callable[[Weights, Facts], None], stage: str, says: str) -> Fault:
    return Fault(name, stage, says, partial(change_weights, graph, edit), graphs=frozenset({graph}))


def in_setting(name: str, file: str, edit: Callable[[str], str], stage: str, says: str) -> Fault:
    return Fault(name, stage, says, partial(change_setting, file, edit))


def in_runtime(name: str, mistake: runtime.Mistake, stage: str, says: str, graph: str | None = None) -> Fault:
    return Fault(name, stage, says, during=mistake, graphs=frozenset({graph}) if graph else None)


def in_model(recipe: str, fault: Fault) -> Fault:
    """The mistake in the artifact of another recipe."""
    return replace(fault, recipe=recipe)


EMBEDDING, RERANKER = "tiny-embedding", "tiny-reranker"
FLIP = partial(change_weights, DECODER, weights.exponent_flipped)
FAULTS = [
    # Files and settings.
    Fault("corrupted-byte", "files", "was altered, its sha256 differs from manifest.json", FLIP, sealed=False),
    in_setting("turn-not-opened", TEMPLATE, weights.turn_not_opened, "prompt", "differs from token"),
    in_setting(
        "pixel-budget-of-qwen2-vl",
        IMAGE_SETTINGS,
        weights.replace_settings(size={"shortest_edge": 3136, "longest_edge": 12845056}),
        "preprocess",
        "the reference has",
    ),
    in_setting(
        "normalized-as-clip",
        IMAGE_SETTINGS,
        weights.replace_settings(
            image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711]
        ),
        "preprocess",
        "pixel_max_abs",
    ),
    # The runtime before the graphs.
    in_runtime("one-image-token-more", runtime.one_image_token_more, "prompt", "consecutive image tokens"),
    in_runtime("resized-bilinear", runtime.resize_bilinear, "preprocess", "pixel_max_abs"),
    in_runtime("channels-reversed", runtime.channels_reversed, "preprocess", "pixel_max_abs"),
    in_runtime("alpha-dropped", runtime.alpha_dropped, "preprocess", "pixel_max_abs"),
    in_runtime("pictures-counted-as-text", runtime.pictures_counted_as_text, "positions", "(t, h, w) ="),
    # The vision encoder.
    in_graph(
        "half-pixel-interpolation", VISION_ENCODER, graphs.half_pixel_interpolation, "vision", "align_corners=False"
    ),
    in_graph("grid-swapped", VISION_ENCODER, graphs.grid_swapped, "vision", "height and width of the grid swapped"),
    in_runtime("merge-blocks-ignored", runtime.merge_blocks_ignored, "vision", "merge-block order", VISION_ENCODER),
    in_weights(
        "temporal-slice-dropped", VISION_ENCODER, weights.temporal_slice_dropped, "vision", "second frame of every"
    ),
    in_weights(
        "patch-bias-lost", VISION_ENCODER, weights.patch_bias_lost, "vision", "bias of the patch embedding lost"
    ),
    in_weights("position-table-quantized", VISION_ENCODER, weights.position_table_quantized, "vision", "worst in"),
    in_graph(
        "vision-rotary-skipped", VISION_ENCODER, graphs.vision_rotary_skipped, "vision", "rotary embedding left out"
    ),
    in_graph(
        "attention-across-images", VISION_ENCODER, graphs.attention_across_images, "vision", "attention across images"
    ),
    in_graph("attention-across-frames", VISION_ENCODER, graphs.attention_across_frames, "vision", "across the frames"),
    in_graph("gelu-exact", VISION_ENCODER, graphs.gelu_exact, "vision", "exact GELU"),
    in_graph("deepstack-not-encoded", VISION_ENCODER, graphs.deepstack_not_encoded, "vision", "DeepStack maps missing"),
    in_graph(
        "deepstack-maps-swapped", VISION_ENCODER, graphs.deepstack_swapped, "vision", "DeepStack maps 0 and 1 exchanged"
    ),
    in_runtime("one-token-of-another", runtime.one_token_of_another, "vision", "token 0 of", VISION_ENCODER),
    # Features into the prompt.
    in_runtime("features-exchanged", runtime.features_exchanged, "embeddings", "first at row 0", EMBEDDINGS),
    in_runtime("features-counted-by-row", runtime.features_counted_by_row, "embeddings", "first at row 1", EMBEDDINGS),
    in_runtime("video-not-scattered", runtime.video_not_scattered, "embeddings", "first at row 0", EMBEDDINGS),
    # The decoder.
    in_graph("deepstack-dropped", DECODER, graphs.deepstack_dropped, "decoder", "DeepStack maps dropped"),
    in_graph("deepstack-one-layer-late", DECODER, graphs.deepstack_late, "decoder", "after the wrong layers"),
    in_graph("mrope-blocked", DECODER, graphs.mrope_blocked, "decoder", "blocked instead of interleaved"),
    in_graph("mrope-axes-swapped", DECODER, graphs.mrope_axes([0, 2, 1]), "decoder", "rows and columns swapped"),
    in_graph("mrope-time-only", DECODER, graphs.mrope_axes([0, 0, 0]), "decoder", "one position axis used"),
    in_graph("rope-theta-assumed", DECODER, graphs.rope_theta, "decoder", "decoder"),
    in_graph("mask-ignored", DECODER, graphs.mask_ignored, "decoder", "attention mask ignored"),
    in_graph("epsilon-1e-5", DECODER, graphs.epsilon, "decoder", "epsilon 1e-5"),
    in_graph("qk-norm-skipped", DECODER, graphs.qk_norm_skipped, "decoder", "q and k norms left out"),
    in_graph("gate-and-up-swapped", DECODER, graphs.gate_and_up_swapped, "decoder", "mlp.down_proj, its input"),
    in_weights("lm-head-order", DECODER, weights.lm_head_order, "decoder", "decoder"),
    in_weights("layer-duplicated", DECODER, weights.layer_duplicated, "decoder", "decoder"),
    Fault("corrupted-byte-sealed", "decoder", "decoder", FLIP, graphs=frozenset({DECODER})),
    in_runtime("one-nan", runtime.one_nan, "decoder", "scaled_max_abs nan", DECODER),
    replace(
        in_weights(
            "block-scale-doubled",
            DECODER,
            weights.block_scale_doubled,
            CALIBRATED,
            "worst in language_model.layers.2",
        ),
        recipe="tiny-int4",
    ),
    # Mistakes that 4 bits would hide: milder than what rounding does to the logits.
    quantized(in_graph("gelu-exact", VISION_ENCODER, graphs.gelu_exact, "vision", "exact GELU")),
    quantized(in_graph("epsilon-1e-5", DECODER, graphs.epsilon, "decoder", "epsilon 1e-5")),
    quantized(
        in_graph("deepstack-one-layer-late", DECODER, graphs.deepstack_late, "decoder", "after the wrong layers")
    ),
    # And in artifacts that round activations as well.
    rounding(in_graph("epsilon-1e-5", DECODER, graphs.epsilon, "decoder", "epsilon 1e-5"), LEVEL_4, "tiny-int4"),
    rounding(in_graph("epsilon-1e-5", DECODER, graphs.epsilon, "decoder", "epsilon 1e-5"), INT8_DYNAMIC, "tiny"),
    # The loop around it.
    in_runtime("cache-off-by-one", runtime.cache_off_by_one, "chunked", "cache_max_abs", DECODER),
    in_runtime("positions-from-token-count", runtime.positions_from_token_count, "generate", "parts at token"),
    # Other heads.
    in_model(
        EMBEDDING,
        in_runtime("instruction-of-a-reranker", heads.instruction_of_another, "prompt", "differs from token"),
    ),
    in_model(EMBEDDING, in_runtime("padded-on-the-right", heads.padded_on_the_right, "prompt", "left_padded")),
    in_model(EMBEDDING, in_runtime("pooled-a-token-early", heads.pooled_a_token_early, "embedding", "worst is prompt")),
    in_model(EMBEDDING, in_runtime("not-normalized", heads.not_normalized, "embedding", "length_error")),
    in_model(
        RERANKER,
        in_weights("yes-no-exchanged", DECODER, heads.yes_and_no_exchanged, "answer_logits", "yes and no of the last"),
    ),
    in_model(
        RERANKER,
        in_runtime("probability-of-no", heads.scored_with_the_opposite_sign, "score", "scores ["),
    ),
]
