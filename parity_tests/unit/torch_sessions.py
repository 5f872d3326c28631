"""A stand-in for the artifact's graphs: the same contract, computed by PyTorch, with a mistake where a test wants one.

The rest of the runtime (prompts, pixels, positions, cache, generation loop) is the shipped one, so a test of the
harness needs no build.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.cache_utils import DynamicCache

from parity_tests.bench import Bench
from parity_tests.matrix import Matrix
from parity_tests.reference import Reference
from parity_tests.verdicts import Profile
from qwen3vl_export.artifact import Artifact, Encoder, Manifest
from qwen3vl_export.checkpoint import open_checkpoint
from qwen3vl_export.contract import DECODER, EMBED_TOKENS, EMBEDDINGS, VISION_ENCODER, past_name
from qwen3vl_export.runtime import Qwen3VL

GRAPHS = (VISION_ENCODER, EMBED_TOKENS, EMBEDDINGS, DECODER)
Arrays = dict[str, NDArray[Any]]
Mistake = Callable[[Arrays], Arrays]  # changes the feeds of a graph, or its outputs


@dataclass
class TorchSessions:
    """Answers `run` as onnxruntime would.

    Args:
        before, after: mistakes by graph name, applied to the feeds and to the outputs.
    """

    artifact: Artifact
    reference: Reference
    before: dict[str, Mistake] = field(default_factory=dict)
    after: dict[str, Mistake] = field(default_factory=dict)
    threads: int | None = 1

    @property
    def facts(self) -> Any:
        return self.artifact.manifest.facts

    feature_dtype = np.dtype(np.float32)
    shares_cache = False

    def dtypes(self, graph: str) -> dict[str, np.dtype[Any]]:
        return dict.fromkeys((past_name(0, "key"), "image_features"), np.dtype(np.float32))

    def run(self, graph: str, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> list[Any]:
        given = self.before.get(graph, dict)(dict(feeds))
        compute = {
            VISION_ENCODER: self.vision,
            EMBED_TOKENS: self.embed_tokens,
            EMBEDDINGS: self.embeddings,
            DECODER: self.decoder,
        }[graph]
        with torch.no_grad(), self.reference.threading():
            found = compute(given)
        found = self.after.get(graph, dict)(found)
        return [found[name] for name in outputs]

    def vision(self, feeds: Arrays) -> Arrays:
        features = self.reference.vision(feeds["pixel_values"], feeds["image_grid_thw"], remember=False)
        return {"image_features": features}

    def embed_tokens(self, feeds: Arrays) -> Arrays:
        table = self.reference.model.get_input_embeddings().weight.numpy()
        ids = feeds["input_ids"]
        rows = np.zeros((*ids.shape, self.facts.wide_size), np.float32)
        rows[..., : self.facts.hidden_size] = table[ids]
        return {"inputs_embeds": rows}

    def embeddings(self, feeds: Arrays) -> Arrays:
        ids, rows = feeds["input_ids"], self.embed_tokens(feeds)["inputs_embeds"]
        rows[np.isin(ids, (self.facts.image_token_id, self.facts.video_token_id))] = feeds["image_features"]
        return {"inputs_embeds": rows}

    def decoder(self, feeds: Arrays) -> Arrays:
        model = self.reference.model
        cache = DynamicCache(config=model.config.text_config)
        for layer in range(self.facts.num_hidden_layers):
            key, value = (torch.from_numpy(feeds[past_name(layer, part)]) for part in ("key", "value"))
            cache.update(key, value, layer)
        hidden, *maps = torch.from_numpy(feeds["inputs_embeds"]).split(self.facts.hidden_size, dim=-1)
        output = model.model.language_model(
            None,  # no ids; the cache goes by place, its name changed in transformers 5.24
            torch.from_numpy(feeds["attention_mask"]),
            torch.from_numpy(feeds["position_ids"]),
            cache,
            inputs_embeds=hidden,
            visual_pos_masks=torch.ones(hidden.shape[:2], dtype=torch.bool),
            deepstack_visual_embeds=[wide.reshape(-1, hidden.shape[-1]) for wide in maps],
        )
        found = {"logits": model.lm_head(output.last_hidden_state).numpy()}
        for index, layer in enumerate(cache.layers):
            found |= {f"present.{index}.key": layer.keys.numpy(), f"present.{index}.value": layer.values.numpy()}
        return found


def torch_bench(checkpoint: Path, matrix: Matrix, profile: Profile, exam_per_size: int = 0) -> Bench:
    """A bench whose two sides are both PyTorch; `bench.runtime.sessions` takes mistakes."""
    opened = open_checkpoint(str(checkpoint))
    manifest = Manifest(
        name="torch",
        recipe={
            "checkpoint": {"source": str(checkpoint)},
            "graphs": GRAPHS,
            "vision": {"grid": "dynamic", "sizes": []},
            "dtype": "float32",
            "parity": {"matrix": "quick", "tolerances": "float32", "held_out": bool(exam_per_size)},
        },
        checkpoint={"source": opened.source, "revision": "local", "files": {}},
        facts=opened.facts,
        encoders=(Encoder(VISION_ENCODER, None),),
        encoder_rule="",
        graphs={name: {} for name in GRAPHS},
        tools={},
        min_onnxruntime="1.0",
    )
    artifact = Artifact(checkpoint, manifest)
    vars(artifact)["manifest_sha256"] = "0" * 64  # there is no file
    bench = Bench(artifact, Qwen3VL(artifact), checkpoint, matrix, profile, exam_per_size)
    bench.runtime.sessions = TorchSessions(artifact, bench.reference)  # type: ignore[assignment]
    return bench
