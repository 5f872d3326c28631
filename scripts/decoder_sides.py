"""The sides of `bench.py`, loaded: each reads a prompt and then one token after another, from ids to logits.

A side keeps its own cache. Sides with `photograph` go from a picture to the first token as well. Knows how to call each
runtime; where their models come from is `decoder_models.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

ROOM = 64  # tokens after the prompt


class Side(Protocol):
    """A loaded model: `prefill` starts anew, `step` continues."""

    def prefill(self, ids: Any) -> None: ...
    def step(self, token: int) -> None: ...


class Ours:
    """The shipped runtime on an artifact: its prefill in chunks, its shared cache."""

    def __init__(self, folder: Path, threads: int) -> None:
        from qwen3vl_export.artifact import open_artifact
        from qwen3vl_export.runtime.session import Sessions

        self.sessions = Sessions(open_artifact(folder, check=False), threads)
        self.cache: Any = None

    def prepared(self, ids: Any, pixel_values: Any, grid: Any) -> Any:
        from qwen3vl_export.runtime import Prepared
        from qwen3vl_export.runtime.positions import rope_index

        mask = np.ones_like(ids)
        positions, deltas = rope_index(ids, mask, grid, self.sessions.facts)
        return Prepared(("",), ids, mask, positions, deltas, pixel_values, grid, (False,) * len(grid))

    def prefill(self, ids: Any) -> None:
        patches = np.zeros((0, self.sessions.facts.patch_dim), np.float32)
        self._prefill(self.prepared(ids[None], patches, np.zeros((0, 3), np.int64)))

    def _prefill(self, prepared: Any) -> Any:
        from qwen3vl_export.runtime.decoder import empty_cache
        from qwen3vl_export.runtime.encoders import encode
        from qwen3vl_export.runtime.generate import prefill

        encoders = self.sessions.artifact.manifest.encoders
        features = encode(self.sessions, encoders, prepared.pixel_values, prepared.image_grid_thw)
        self.cache = empty_cache(self.sessions, 1, prepared.input_ids.shape[1] + ROOM)
        return prefill(self.sessions, prepared, features, cache=self.cache)[0]

    def step(self, token: int) -> None:
        from qwen3vl_export.runtime.decoder import decode, embed_generated

        length = self.cache.length + 1
        rows = embed_generated(self.sessions, np.array([token]))
        positions = np.full((3, 1, 1), length - 1)
        decode(self.sessions, rows, np.ones((1, length), np.int64), positions, self.cache, 1)

    def photograph(self, pixels: Any) -> int:
        """From pixels [height, width, 3] to the first token's logits; returns the patches that the picture became."""
        from qwen3vl_export.runtime.pictures.images import open_image
        from qwen3vl_export.runtime.pictures.preprocess import image_grid, image_to_patches, read_pixel_rules

        facts = self.sessions.facts
        rules = read_pixel_rules(
            self.sessions.artifact.json_file("preprocessor_config.json"), facts, "preprocessor_config.json"
        )
        image = open_image(pixels)
        grid = image_grid(image.height, image.width, rules, facts)
        patches = image_to_patches(image, grid, rules, facts)
        tokens = [facts.image_token_id] * (grid[0] * grid[1] // facts.merge_unit)
        ids = np.array([[facts.vision_start_token_id, *tokens, facts.vision_end_token_id, *range(16)]])
        self._prefill(self.prepared(ids, patches, np.array([[1, *grid]])))
        return len(patches)


class Transformers:
    """transformers with eager attention, float32."""

    def __init__(self, folder: Path, threads: int) -> None:
        import torch
        from transformers import Qwen3VLForConditionalGeneration

        torch.set_num_threads(threads)
        self.folder = folder
        self.model = Qwen3VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self._start()

    def _call(self, ids: Any, **inputs: Any) -> None:
        import torch

        with torch.inference_mode():  # the cache goes by place, its name changed in transformers 5.24
            self.model(torch.from_numpy(ids), None, None, self.cache, logits_to_keep=1, **inputs)

    def _start(self) -> None:
        """Forget what came before."""
        from transformers.cache_utils import DynamicCache

        self.cache = DynamicCache(config=self.model.config.text_config)

    def prefill(self, ids: Any) -> None:
        self._start()
        self._call(ids[None])

    def step(self, token: int) -> None:
        self._call(np.array([[token]]))

    def photograph(self, pixels: Any) -> int:
        import PIL.Image
        import torch
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        processor = Qwen2VLImageProcessorPil.from_pretrained(self.folder)
        found = processor(images=[PIL.Image.fromarray(pixels)], return_tensors="pt")
        config, grid = self.model.config, found["image_grid_thw"]
        tokens = [config.image_token_id] * (int(grid.prod()) // config.vision_config.spatial_merge_size**2)
        ids = np.array([[config.vision_start_token_id, *tokens, config.vision_end_token_id, *range(16)]])
        kinds = torch.from_numpy((ids == config.image_token_id).astype(np.int64))
        self._start()
        self._call(ids, pixel_values=found["pixel_values"], image_grid_thw=grid, mm_token_type_ids=kinds)
        return int(grid.prod())


class Genai:
    """onnxruntime-genai; its settings name the threads."""

    def __init__(self, folder: Path, threads: int) -> None:
        import onnxruntime_genai as genai

        config = genai.Config(str(folder))
        config.overlay(f'{{"model": {{"decoder": {{"session_options": {{"intra_op_num_threads": {threads}}}}}}}}}')
        self.genai, self.model, self.generator = genai, genai.Model(config), None

    def prefill(self, ids: Any) -> None:
        self.generator = None
        options = self.genai.GeneratorParams(self.model)
        options.set_search_options(max_length=len(ids) + ROOM, min_length=len(ids) + ROOM, do_sample=False)
        self.generator = self.genai.Generator(self.model, options)
        self.generator.append_tokens(ids.astype(np.int32))

    def step(self, token: int) -> None:
        assert self.generator is not None
        self.generator.append_tokens(np.array([token], np.int32))


class LlamaCpp:
    """llama.cpp by llama-cpp-python, cache in float16 as it comes."""

    def __init__(self, folder: Path, threads: int) -> None:
        import llama_cpp

        options = {"n_threads": threads, "n_threads_batch": threads, "n_ctx": 4096 + ROOM, "verbose": False}
        self.model = llama_cpp.Llama(str(folder / "model.gguf"), n_batch=512, **options)

    def prefill(self, ids: Any) -> None:
        self.model.reset()
        self.model.eval(ids.tolist())

    def step(self, token: int) -> None:
        self.model.eval([token])


class OpenVino:
    """OpenVINO on the portable artifact, the cache kept inside as its state; dtypes as it chooses them."""

    CHUNK = 512  # tokens of a prompt at a time, as here

    def __init__(self, folder: Path, threads: int) -> None:
        import openvino
        from openvino._offline_transformations import apply_make_stateful_transformation

        core, settings = openvino.Core(), {"INFERENCE_NUM_THREADS": threads}
        model = core.read_model(folder / "onnx" / "one_row.onnx")
        one_row = {"position_ids": [3, 1, -1], "attention_mask": [1, -1]}
        shapes = {port.any_name: port.partial_shape for port in model.inputs}
        model.reshape({name: one_row.get(name, [1, *list(shape)[1:]]) for name, shape in shapes.items()})
        past = [name for name in shapes if name.startswith("past_key_values.")]
        apply_make_stateful_transformation(model, {name: f"present.{name.split('.', 1)[1]}" for name in past})
        self.decoder = core.compile_model(model, "CPU", settings).create_infer_request()
        self.table = core.compile_model(folder / "onnx" / "embed_tokens.onnx", "CPU", settings)
        self.length = 0

    def _call(self, ids: Any) -> None:
        rows = self.table({"input_ids": ids[None]})[0]
        start, self.length = self.length, self.length + len(ids)
        self.decoder.infer(
            {
                "inputs_embeds": rows,
                "attention_mask": np.ones((1, self.length), np.int64),
                "position_ids": np.broadcast_to(np.arange(start, self.length), (3, 1, len(ids))),
            }
        )

    def prefill(self, ids: Any) -> None:
        self.decoder.reset_state()
        self.length = 0
        for start in range(0, len(ids), self.CHUNK):
            self._call(ids[start : start + self.CHUNK])

    def step(self, token: int) -> None:
        self._call(np.array([token]))


SIDES: dict[str, tuple[str, Callable[[Path, int], Side]]] = {  # folder under the work directory, and how to load it
    "float32": ("float32", Ours),
    "int4": ("int4", Ours),
    "int4-128": ("int4-128", Ours),
    "transformers": ("checkpoint", Transformers),
    "genai": ("genai", Genai),
    "llama.cpp": ("llama.cpp", LlamaCpp),
    "openvino": ("int4-portable", OpenVino),
}
