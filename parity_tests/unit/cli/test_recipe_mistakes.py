"""Mistakes in recipes: which are refused, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from parity_tests.fixtures.recipe_files import write
from qwen3vl_export.errors import RecipeError
from qwen3vl_export.recipe import find_recipe, load_recipe

TINY = "extends: tiny.yaml\n"
MISTAKES = {
    "unknown key": (TINY + "vison: {grid: dynamic}\n", "vison: unknown key. Did you mean vision?"),
    "unknown key below": (
        TINY + "quantization: {decoder_model_merged: {metod: none}}\n",
        "quantization.decoder_model_merged.metod: unknown key. Did you mean method?",
    ),
    "unknown key unlike any": (TINY + "vision: {zzz: 1}\n", "vision.zzz: unknown key. Known keys: grid, sizes"),
    "method that does not exist": (
        TINY + "quantization: {embeddings: {method: int3}}\n",
        'embeddings.method: "int3" is not one of none, int8_dynamic, int8, int4, source. Did you mean int8?',
    ),
    "method that is missing": (
        TINY + "quantization: {embeddings: {block_size: 32}}\n",
        "quantization.embeddings.method: is missing. One of none, int8_dynamic, int8, int4, source",
    ),
    "key of a method": (
        TINY + "quantization: {decoder_model_merged: {method: int4, blok_size: 32}}\n",
        "quantization.decoder_model_merged.blok_size: unknown key. Did you mean block_size?",
    ),
    "tower in 4 bits": (
        TINY + "quantization: {vision_encoder: {method: int4}}\n",
        "quantization.vision_encoder.accept_error: 4-bit weights change the features",
    ),
    "table multiplied": (
        TINY + "quantization: {embeddings: {method: int8_dynamic}}\n",
        "quantization.embeddings.method: int8_dynamic quantizes products",
    ),
    "8-bit activations of float16": (
        TINY + "dtype: float16\nquantization: {vision_encoder: {method: int8_dynamic}}\n",
        "quantization.vision_encoder.method: int8_dynamic takes activations in float32. Write dtype: float32",
    ),
    "decoder smoothed": (
        TINY + "quantization: {decoder_model_merged: {method: int8_dynamic, smoothing: weights}}\n",
        "quantization.decoder_model_merged.smoothing: only the vision encoder is smoothed. Remove it",
    ),
    "smoothing without prompts": (
        TINY + "quantization: {vision_encoder: {method: int8_dynamic, smoothing: calibration}}\n",
        "calibration: smoothing: calibration needs prompts with pictures. Write calibration: {source: ./calibration}, "
        "or smoothing: weights",
    ),
    "smoothing of a precision without prompts": (
        TINY + "precisions: {int8: {quantization: {vision_encoder: {method: int8_dynamic, smoothing: calibration}}}}\n",
        "calibration: smoothing: calibration needs prompts with pictures",
    ),
    "portable experts": (
        TINY + "target: portable\nexperts: operator\n",
        "experts: no standard operator computes a mixture of experts. Write experts: auto",
    ),
    "a form of experts": (TINY + "experts: loop\n", 'experts: "loop" is not one of auto, operator'),
    "a provider of settings": (TINY + "packaging: {provider: gpu}\n", '"gpu" is not one of cpu, cuda'),
    "portable zero points": (
        TINY + "target: portable\nquantization: {decoder_model_merged: {method: int4, symmetric: false}}\n",
        "quantization.decoder_model_merged.symmetric: the portable target has symmetric blocks only",
    ),
    "portable integers of a checkpoint": (
        TINY + "target: portable\nquantization: {decoder_model_merged: {method: source}}\n",
        "quantization.decoder_model_merged.method: integers of a checkpoint go into MatMulNBits, an operator of the "
        "ort target. Write target: ort, or method: int4",
    ),
    "method of a cache": (
        TINY + "quantization: {cache: {method: int4}}\n",
        'quantization.cache.method: "int4" is not one of none, int8',
    ),
    "key of a cache": (
        TINY + "quantization: {cache: {method: int8, keep: []}}\n",
        "quantization.cache.keep: unknown key. Known keys: method",
    ),
    "portable cache": (
        TINY + "target: portable\nquantization: {cache: {method: int8}}\n",
        "quantization.cache.method: no standard operator reads a quantized cache. Write target: ort, or method: none",
    ),
    "cache on a GPU": (
        TINY + "packaging: {provider: cuda}\nquantization: {cache: {method: int8}}\n",
        "quantization.cache.method: only a CPU is known to read it, the provider is cuda. Write method: none",
    ),
    "cache of a model that answers nothing": (
        TINY + "head: embedding\nparity: {held_out: false}\nquantization: {cache: {method: int8}}\n",
        "quantization.cache.method: the head is embedding, which reads every prompt at once. Write method: none",
    ),
    "cache for an onnxruntime that cannot read it": (
        TINY + 'min_onnxruntime: "1.26.1"\nquantization: {cache: {method: int8}}\n',
        'min_onnxruntime: a cache in 8 bits needs onnxruntime 1.27, this says 1.26.1. Write min_onnxruntime: "1.27"',
    ),
    "cache without prompts": (
        TINY + 'min_onnxruntime: "1.27"\nquantization: {cache: {method: int8}}\n',
        "calibration: cache: int8 needs prompts. Write calibration: {source: ./calibration}",
    ),
    "cache of a precision": (
        TINY + "target: portable\nprecisions: {q4: {quantization: {cache: {method: int8}}}}\n",
        "precisions.q4.quantization.cache.method: no standard operator reads a quantized cache",
    ),
    "profile of exact numbers with a quantized cache": (
        TINY + "parity: {tolerances: float32}\nquantization: {cache: {method: int8}}\n",
        "parity.tolerances: int8 cannot meet the float32 profile",
    ),
    "profile of exact weights with rounded activations": (
        TINY
        + "parity: {tolerances: float32}\nquantization: {decoder_model_merged: {method: source, accuracy_level: 4}}\n",
        "parity.tolerances: int8 cannot meet the float32 profile",
    ),
    "profile of a finer precision": (
        TINY + "parity: {tolerances: float16}\nquantization: {decoder_model_merged: {method: int8}}\n",
        "parity.tolerances: int8 cannot meet the float16 profile. Write tolerances: int8",
    ),
    "unknown precision": (
        TINY + "precisions: {float16: {dtype: float16}}\n",
        "precisions.float16: unknown precision. Did you mean fp16?",
    ),
    "unknown key of a precision": (
        TINY + "precisions: {q4: {quantisation: {}}}\n",
        "precisions.q4.quantisation: unknown key. Did you mean quantization?",
    ),
    "unknown key of a precision's method": (
        TINY + "precisions: {q4: {quantization: {decoder_model_merged: {method: int4, blok_size: 32}}}}\n",
        "precisions.q4.quantization.decoder_model_merged.blok_size: unknown key. Did you mean block_size?",
    ),
    "tower of a precision in 4 bits": (
        TINY + "precisions: {q4: {quantization: {vision_encoder: {method: int4}}}}\n",
        "precisions.q4.quantization.vision_encoder.accept_error: 4-bit weights change the features",
    ),
    "profile of a finer precision beside it": (
        TINY + "precisions: {fp16: {dtype: float16, tolerances: float32}}\n",
        "precisions.fp16.tolerances: float16 cannot meet the float32 profile",
    ),
    "wrong choice": (
        TINY + "dtype: fp16\n",
        'dtype: "fp16" is not one of float32, float16, bfloat16. Did you mean float16?',
    ),
    "wrong type": (TINY + "checkpoint: here\n", 'checkpoint: found "here". It must be a mapping of keys to values'),
    "number for text": (TINY + "min_onnxruntime: 1.23\n", "min_onnxruntime: found 1.23. It must be text"),
    "text for boolean": (TINY + 'parity: {held_out: "yes"}\n', 'held_out: found "yes". It must be true or false'),
    "nothing": (TINY + "parity:\n", "parity: found nothing. It must be a mapping"),
    "name with blanks": (TINY + 'name: "A B"\n', 'name: found "A B". It must be up to 100 lower-case letters'),
    "no checkpoint": ("dtype: float32\n", "checkpoint: is missing. Add it"),
    "misspelt checkpoint": ("chekpoint: {source: ./x}\n", "chekpoint: unknown key. Did you mean checkpoint?"),
    "sizes with dynamic": (TINY + "vision: {sizes: [[64, 64]]}\n", "vision.sizes: a dynamic grid takes every size."),
    "fixed without size": (TINY + "vision: {grid: fixed}\n", "vision.sizes: a fixed grid needs exactly one size"),
    "one bucket": (TINY + "vision: {grid: buckets, sizes: [[64, 64]]}\n", "vision.sizes: buckets need two sizes"),
    "bucket twice": (
        TINY + "vision: {grid: buckets, sizes: [[64, 64], [64, 64]]}\n",
        "vision.sizes: [64, 64] appears twice",
    ),
    "size of a strip": (
        TINY + "vision: {grid: fixed, sizes: [[32, 6432]]}\n",
        "vision.sizes: [32, 6432] is over 200:1",
    ),
    "not a multiple": (
        TINY + "vision: {grid: fixed, sizes: [[384, 390]]}\n",
        "vision.sizes[0][1]: 390 is not a multiple of 32. Use 384 or 416",
    ),
    "size of one number": (
        TINY + "vision: {grid: fixed, sizes: [[384]]}\n",
        "vision.sizes[0]: a size is [height, width]",
    ),
    "negative size": (TINY + "vision: {grid: fixed, sizes: [[-32, 32]]}\n", "vision.sizes[0][0]: found -32."),
    "half precision, full tolerance": (
        TINY + "dtype: float16\nparity: {tolerances: float32}\n",
        "parity.tolerances: float16 cannot meet the float32 profile",
    ),
    "runtime without its graph": (
        TINY + "graphs: [embed_tokens]\nparity: {held_out: false}\npackaging: {runtimes: [transformers.js]}\n",
        "packaging.runtimes: transformers.js needs vision_encoder, which is not exported. Leave transformers.js out",
    ),
    "runtime that takes any size": (
        "extends: tiny-fixed.yaml\npackaging: {runtimes: [onnxruntime-genai]}\n",
        "packaging.runtimes: onnxruntime-genai needs a vision encoder for any picture size",
    ),
    "runtime that only answers": (
        TINY + "head: embedding\nparity: {held_out: false}\npackaging: {runtimes: [onnxruntime-genai]}\n",
        "packaging.runtimes: onnxruntime-genai only answers, and the head is embedding. Leave onnxruntime-genai out",
    ),
    "exam of a reranker": (
        TINY + "head: reranker\n",
        "parity.held_out: the exam asks questions, and the head is reranker. Set held_out: false",
    ),
    "misspelt head": (TINY + "head: rerank\n", 'head: "rerank" is not one of text, embedding, reranker'),
    "cost of logits that there are not": (
        TINY + "head: embedding\nparity: {held_out: false, cost: {mean_kl: 0.1}}\n",
        "parity.cost: its limits are on logits of the next token, and the head is embedding. Write cost: {}",
    ),
    "exam without a graph": (TINY + "graphs: [embeddings]\n", "parity.held_out: the exam needs every graph"),
    "graph twice": (TINY + "graphs: [embeddings, embeddings]\nparity: {held_out: false}\n", "graphs: a graph appears"),
    "syntax": ("vision: [\n", "wrong.yaml:2: expected"),
    "duplicate key": (TINY + "dtype: float16\ndtype: float32\n", "wrong.yaml:3: dtype is given twice. Correct"),
    "empty": ("", "is empty. Start with"),
    "list": ("- a\n", "must be a mapping"),
    "code": ("x: !!python/object:os.system ls\n", "wrong.yaml:1: could not determine a constructor"),
    "itself inside": ("x: &a [*a]\n", "a value contains itself. Correct this line"),
    "extends nothing": ("extends: tinny.yaml\n", "extends: no such file: tinny.yaml"),
    "extends a list": ("extends: [tiny.yaml]\n", "extends: must be a file name"),
    "extends itself": ("extends: wrong.yaml\n", "extends: goes in a circle: wrong.yaml extends wrong.yaml"),
    "number as key": (TINY + "1: 2\n", "1: unknown key"),
}


@pytest.mark.parametrize("text, expected", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_with_file_and_key(folder: Path, text: str, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write("wrong.yaml", text))
    line = str(caught.value)
    assert line.startswith("wrong.yaml:")
    assert expected in line
    assert "\n" not in line


def test_further_mistakes_are_counted(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"\(2 more mistakes\)$"):
        load_recipe(write("wrong.yaml", TINY + "a: 1\nb: 2\ndtype: fp16\n"))


def test_a_mistake_in_a_base_names_the_base(folder: Path) -> None:
    write("base.yaml", TINY + "dtype: fp16\n")
    with pytest.raises(RecipeError, match=r"^base\.yaml: dtype:"):
        load_recipe(write("mine.yaml", "extends: base.yaml\n"))


def test_a_directory_written_like_a_hub_id_is_noticed(folder: Path) -> None:
    (folder / "checkpoints" / "mine").mkdir(parents=True)
    with pytest.raises(RecipeError, match=r"Write \./checkpoints/mine for the directory"):
        load_recipe(write("mine.yaml", "checkpoint: {source: checkpoints/mine}\n"))


@pytest.mark.parametrize(
    "name, expected",
    {
        "tinny": "tinny: no recipe of that name. Did you mean tiny?",
        "tinny.yaml": "tinny.yaml: no such recipe. Did you mean tiny.yaml?",
        "qqqqqqqqqqqq": "qqqqqqqqqqqq: no recipe of that name. See: recipes list",
        ".": ".: is a directory",
    }.items(),
)
def test_a_recipe_that_is_not_there(folder: Path, name: str, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        find_recipe(name)
    assert str(caught.value).startswith(expected)


def test_a_file_that_is_no_text(folder: Path) -> None:
    Path("wrong.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"wrong\.yaml: not a text file in UTF-8"):
        load_recipe("wrong.yaml")
