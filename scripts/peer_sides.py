"""The peers of `bench.py`, loaded: onnxruntime-genai, llama.cpp, OpenVINO and OpenVINO GenAI.

Knows how to call each; what they read is made by `peer_models.py` and `gguf_models.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from decoder_sides import QUESTION, Mark, Prompt, Refused
from gguf_models import MODEL, PROJECTOR


class Genai:
    """onnxruntime-genai on what its own builder made."""

    parts: ClassVar[tuple[str, ...]] = ("decoder",)

    def __init__(self, folder: Path, threads: int, room: int) -> None:
        import onnxruntime_genai as genai

        config = genai.Config(str(folder))
        options = {part: {"session_options": {"intra_op_num_threads": threads}} for part in self.parts}
        config.overlay(json.dumps({"model": options}))
        self.genai, self.model, self.room = genai, genai.Model(config), room

    def _generator(self) -> Any:
        options = self.genai.GeneratorParams(self.model)
        options.set_search_options(max_length=self.room, min_length=self.room, do_sample=False)
        return self.genai.Generator(self.model, options)

    def _generate(self, generator: Any, tokens: int, mark: Mark) -> None:
        for _ in range(tokens):
            generator.generate_next_token()
            mark()

    def answer(self, prompt: Prompt, tokens: int, mark: Mark) -> None:
        generator = self._generator()
        generator.append_tokens(np.array(prompt.ids, np.int32))
        self._generate(generator, tokens, mark)

    def look(self, pixels: Any, tokens: int, mark: Mark) -> int:
        raise Refused("its builder exports the language model alone")


class GenaiPictures(Genai):
    """onnxruntime-genai on an artifact of ours."""

    parts: ClassVar[tuple[str, ...]] = ("decoder", "vision", "embedding")

    def answer(self, prompt: Prompt, tokens: int, mark: Mark) -> None:
        self._answer(prompt.text, None, tokens, mark)

    def look(self, pixels: Any, tokens: int, mark: Mark) -> int:
        import io

        import PIL.Image

        file = io.BytesIO()
        PIL.Image.fromarray(pixels).save(file, "JPEG")  # which takes a fiftieth of a second
        text = f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{QUESTION}<|im_end|>\n"
        return self._answer(f"{text}<|im_start|>assistant\n", file.getvalue(), tokens, mark)

    def _answer(self, text: str, image: bytes | None, tokens: int, mark: Mark) -> int:
        images = None if image is None else self.genai.Images.open_bytes(image)
        inputs = self.model.create_multimodal_processor()(text, images=images)
        generator = self._generator()
        generator.set_inputs(inputs)
        self._generate(generator, tokens, mark)
        return int(inputs["input_ids"].shape()[-1])


class LlamaCpp:
    """llama.cpp and its multimodal library by llama-cpp-python, cache in float16 as it comes."""

    BATCH = 512  # tokens at a time

    def __init__(self, folder: Path, threads: int, room: int) -> None:
        import llama_cpp

        options = {"n_threads": threads, "n_threads_batch": threads, "n_ctx": room, "verbose": False}
        self.model = llama_cpp.Llama(str(folder / MODEL), n_batch=self.BATCH, **options)
        self.projector, self.threads = folder / PROJECTOR, threads
        self.pictures: Any = None

    def _generate(self, tokens: int, mark: Mark) -> None:
        import llama_cpp

        vocabulary = self.model.n_vocab()
        for number in range(tokens):
            logits = llama_cpp.llama_get_logits_ith(self.model.ctx, -1)
            token = int(np.ctypeslib.as_array(logits, (vocabulary,)).argmax())
            mark()
            if number + 1 < tokens:
                self.model.eval([token])

    def answer(self, prompt: Prompt, tokens: int, mark: Mark) -> None:
        self.model.reset()
        self.model.eval(prompt.ids)
        self._generate(tokens, mark)

    def look(self, pixels: Any, tokens: int, mark: Mark) -> int:
        import ctypes

        from llama_cpp import mtmd_cpp as mtmd

        if self.pictures is None:
            settings = mtmd.mtmd_context_params_default()
            settings.use_gpu, settings.n_threads, settings.print_timings = False, self.threads, False
            settings.warmup = False
            self.pictures = mtmd.mtmd_init_from_file(str(self.projector).encode(), self.model.model, settings)
            if self.pictures is None:
                raise RuntimeError("llama.cpp cannot load the projector")
        self.model.reset()
        self.model._ctx.kv_cache_clear()
        data = np.ascontiguousarray(pixels)
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmap = mtmd.mtmd_bitmap_init(data.shape[1], data.shape[0], pointer)
        chunks = mtmd.mtmd_input_chunks_init()
        text = mtmd.mtmd_input_text()
        marker = mtmd.mtmd_default_marker().decode()
        spelled = f"<|im_start|>user\n{marker}{QUESTION}<|im_end|>\n<|im_start|>assistant\n".encode()
        text.text, text.text_len, text.add_special, text.parse_special = spelled, len(spelled), False, True
        bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
        if failed := mtmd.mtmd_tokenize(self.pictures, chunks, ctypes.byref(text), bitmaps, 1):
            raise RuntimeError(f"mtmd_tokenize returned {failed}")
        past = ctypes.c_int32(0)
        arguments = (self.pictures, self.model.ctx, chunks, 0, 0, self.BATCH, True, ctypes.byref(past))
        if failed := mtmd.mtmd_helper_eval_chunks(*arguments):
            raise RuntimeError(f"mtmd_helper_eval_chunks returned {failed}")
        self.model.n_tokens = past.value
        self._generate(tokens, mark)
        return int(mtmd.mtmd_helper_get_n_tokens(chunks))


class OpenVino:
    """OpenVINO on the portable artifact, the cache kept inside as its state; dtypes as it chooses them."""

    CHUNK = 512  # tokens of a prompt at a time, as here

    def __init__(self, folder: Path, threads: int, room: int) -> None:
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

    def answer(self, prompt: Prompt, tokens: int, mark: Mark) -> None:
        self.decoder.reset_state()
        length = 0
        pending = [prompt.ids[start : start + self.CHUNK] for start in range(0, len(prompt.ids), self.CHUNK)]
        for number in range(len(pending) + tokens - 1):
            start, length = length, length + len(pending[number])
            inputs = {
                "inputs_embeds": self.table({"input_ids": np.array([pending[number]])})[0],
                "attention_mask": np.ones((1, length), np.int64),
                "position_ids": np.broadcast_to(np.arange(start, length), (3, 1, length - start)),
            }
            token = int(self.decoder.infer(inputs)["logits"].argmax())
            if length >= len(prompt.ids):
                mark()
                pending.append([token])

    def look(self, pixels: Any, tokens: int, mark: Mark) -> int:
        raise Refused("only its decoder is set up here; openvino-genai is the pipeline")


class OpenVinoGenai:
    """OpenVINO GenAI on optimum-intel's export, everything as it comes: dtypes, an 8-bit cache."""

    def __init__(self, folder: Path, threads: int, room: int) -> None:
        import openvino_genai

        self.genai = openvino_genai
        self.pipeline = openvino_genai.VLMPipeline(str(folder), "CPU", INFERENCE_NUM_THREADS=threads)

    def _generate(self, text: str, tokens: int, mark: Mark, template: bool, **inputs: Any) -> int:
        class Streamer(self.genai.StreamerBase):  # type: ignore[misc, name-defined]
            def write(self, token: Any) -> Any:
                for _ in token if isinstance(token, list) else [token]:
                    mark()
                return running

            def end(self) -> None:
                """Nothing is held back."""

        running = self.genai.StreamingStatus.RUNNING
        config = self.genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = tokens, True, False
        config.apply_chat_template = template
        results = self.pipeline.generate(text, generation_config=config, streamer=Streamer(), **inputs)
        return int(results.perf_metrics.get_num_input_tokens())

    def answer(self, prompt: Prompt, tokens: int, mark: Mark) -> None:
        counted = self._generate(prompt.text, tokens, mark, template=False)
        assert counted == len(prompt.ids), f"the prompt became {counted} tokens"

    def look(self, pixels: Any, tokens: int, mark: Mark) -> int:
        import openvino

        return self._generate(QUESTION, tokens, mark, template=True, images=[openvino.Tensor(pixels[None])])
