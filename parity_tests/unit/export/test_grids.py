"""Both towers over more than 120 sets of grids, beside transformers' eager attention: every shape, count and length.

A narrow tower at unit-scale weights stands for all: what a grid can get wrong is geometry, which neither width nor
depth changes. It has the head size, patch size and position table of the published ones, and a block of each kind: one
with a DeepStack map taken after it, and one without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from qwen3vl_export import contract
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.exporter.pipeline import export_graph
from qwen3vl_export.exporter.stages import Stages
from qwen3vl_export.exporter.weights import WeightFile

from ...fixtures.official import config, write_checkpoint
from ...fixtures.traces import build_submodule

Grids = list[tuple[int, int, int]]

NAMED: dict[str, Grids] = {
    "users-case-16x16": [(1, 16, 16)],
    "users-case-24x24": [(1, 24, 24)],
    "users-case-both": [(1, 24, 24), (1, 16, 16)],
    "smallest": [(1, 2, 2)],
    "smallest-of-all-after-large": [(1, 40, 40), (1, 2, 2)],
    "wide-2x128": [(1, 2, 128)],
    "tall-128x2": [(1, 128, 2)],
    "wide-and-tall": [(1, 2, 128), (1, 128, 2)],
    "photo-68x120": [(1, 68, 120)],
    "table-48x48": [(1, 48, 48)],
    "beyond-the-table-50x46": [(1, 50, 46)],
    "patches-16560": [(1, 92, 180)],
    "frames-64": [(64, 6, 4)],
    "frames-64-and-picture": [(64, 4, 4), (1, 30, 22)],
    "images-64-equal": [(1, 8, 8)] * 64,
    "images-64-different": [(1, 2 + 2 * (i % 8), 2 + 2 * (i // 8)) for i in range(64)],
    "images-17-smallest": [(1, 2, 2)] * 17,
    "mixed-9744": [(1, 48, 48), (1, 16, 16), (1, 32, 64), (4, 16, 24), (1, 90, 40)],
    "videos-only": [(12, 4, 6), (7, 20, 34), (2, 28, 16)],
    "equal-patches-other-shape": [(1, 12, 12), (1, 18, 8), (1, 8, 18), (4, 6, 6)],
    "transposed-pair": [(1, 26, 38), (1, 38, 26)],
}
NAMED |= {f"square-{side}": [(1, side, side)] for side in range(4, 48, 4) if side not in (16, 24)}
NAMED |= {
    f"{h}x{w}": [(1, h, w)] for h, w in ((4, 2), (2, 4), (6, 100), (34, 60), (10, 14), (14, 10), (72, 30), (94, 22))
}
NAMED |= {f"two-wide-{w}": [(1, 2, w)] for w in (6, 30, 62, 64, 66)}
NAMED |= {f"two-tall-{h}": [(1, h, 2)] for h in (6, 30, 62, 64, 66)}
NAMED |= {f"frames-{t}": [(t, 10, 12)] for t in (2, 3, 4, 8, 16, 32)}
NAMED |= {f"images-{n}": [(1, 14, 10)] * n for n in (2, 3, 5, 8, 13)}
NAMED |= {f"video-{t}-between": [(1, 6, 8), (t, 8, 6), (1, 8, 8)] for t in (2, 5, 9)}
RANDOM = 60  # seeded sets on top of the named ones

MAX_ABS = 3e-5
COSINE = 0.999999


@dataclass(frozen=True)
class Towers:
    """transformers' tower and a session of the exported one for each target, on the same weights."""

    reference: Any
    sessions: dict[str, Any]

    def check(self, grids: Grids) -> None:
        grid = torch.tensor(grids)
        rows = int(grid.prod(1).sum())
        pixels = torch.randn(rows, 1536, generator=torch.Generator().manual_seed(rows))
        with torch.inference_mode():
            out = self.reference(pixels, grid_thw=grid)
        expected = torch.cat([out.pooler_output, *out.deepstack_features], dim=-1).numpy()
        feeds = {contract.PIXEL_VALUES: pixels.numpy(), contract.IMAGE_GRID_THW: grid.numpy()}
        for target, session in self.sessions.items():
            features = session.run(None, feeds)[0]
            assert features.shape == expected.shape, target
            assert np.isfinite(features).all(), target
            cosine = (features * expected).sum(1) / np.linalg.norm(features, axis=1) / np.linalg.norm(expected, axis=1)
            assert np.abs(features - expected).max() <= MAX_ABS, target
            assert cosine.min() >= COSINE, target


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Towers:
    work = tmp_path_factory.mktemp("towers")
    sizes = config("2b", layers=1, depth=2, vocab_size=64)
    sizes.vision_config.deepstack_visual_indexes = [0]
    sizes.vision_config.hidden_size, sizes.vision_config.num_heads, sizes.vision_config.intermediate_size = 128, 2, 256
    sizes.vision_config.out_hidden_size = sizes.text_config.hidden_size = 64
    checkpoint = open_checkpoint(str(write_checkpoint(work / "checkpoint", sizes)))
    sessions = {}
    for target in ("ort", "portable"):
        (work / target).mkdir()
        submodule = build_submodule(checkpoint, contract.VISION_ENCODER, target, torch.float32)
        with WeightFile.create(work / target, contract.VISION_ENCODER) as data:
            export_graph(submodule, checkpoint, target, torch.float32, data, Stages(contract.VISION_ENCODER))
        sessions[target] = ort.InferenceSession(str(work / target / "vision_encoder.onnx"))
    reference = Qwen3VLVisionModel._from_config(sizes.vision_config, attn_implementation="eager").eval()
    prefix = "model.visual."
    weights = {n.removeprefix(prefix): checkpoint.read(n).float() for n in checkpoint.tensors if n.startswith(prefix)}
    reference.load_state_dict(weights)
    return Towers(reference, sessions)


def test_there_are_more_than_120_sets() -> None:
    assert len({tuple(grids) for grids in NAMED.values()}) + RANDOM >= 120


@pytest.mark.parametrize("grids", NAMED.values(), ids=NAMED.keys())
def test_named_grids_equal_pytorch(towers: Towers, grids: Grids) -> None:
    towers.check(grids)


def sides(most: int) -> st.SearchStrategy[int]:
    return st.integers(1, most // 2).map(lambda half: 2 * half)


batches = st.lists(
    st.one_of(
        st.tuples(st.just(1), sides(40), sides(40)),
        st.tuples(st.integers(2, 8), sides(12), sides(12)),
        st.tuples(st.just(1), st.just(2), sides(128)),
    ),
    min_size=1,
    max_size=6,
)


@settings(
    max_examples=RANDOM,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(grids=batches)
def test_random_batches_equal_pytorch(towers: Towers, grids: Grids) -> None:
    towers.check(grids)
