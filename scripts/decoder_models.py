"""The models of `bench.py`: one random checkpoint, and what each side makes of the same tensors.

Our sides are artifacts built by the pipeline, each under the name of a precision: a file in `recipes/precisions`, or
one of `PRECISIONS` here, which has what earlier versions were measured with. transformers reads the checkpoint itself.
What the others read is made by `peer_models.py` and `gguf_models.py`. Knows recipes; measures nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "recipes" / "checkpoints" / "tiny"
SETTINGS = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")
PREPROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json")
PIXELS = {"shortest_edge": 65536, "longest_edge": 16777216}  # of the published checkpoints, not of the tiny one
TABLE = {"method": "int4", "block_size": 32}
PRECISIONS: dict[str, dict[str, Any]] = {  # a float32 tower, and the decoder in blocks of so many
    f"int4-{block}": {
        "dtype": "float32",
        "quantization": {
            "embeddings": TABLE,
            "decoder_model_merged": {**TABLE, "block_size": block, "accuracy_level": 4},
        },
    }
    for block in (32, 128)
}
RECIPE = "bench.yaml"
CHECKPOINT = "checkpoint"


def rope_of(text: Mapping[str, Any]) -> tuple[float, list[int]]:
    """The base of the rotary angles and how many of them each axis has, of a published `text_config` or a newer one."""
    rope = text.get("rope_parameters") or {"rope_theta": text["rope_theta"], **text["rope_scaling"]}
    return rope["rope_theta"], rope["mrope_section"]


def precision_names() -> list[str]:
    """Every precision that can be a side."""
    return [*sorted(file.stem for file in (ROOT / "recipes" / "precisions").glob("*.yaml")), *PRECISIONS]


def write_random(work: Path, size: str, layers: int | None, depth: int | None, vocab_size: int) -> None:
    """A random checkpoint of a published shape with the tiny model's tokenizer, which no figure depends on."""
    from parity_tests.fixtures.official import config, write_checkpoint

    if size == "tiny":
        shutil.copytree(TINY, work / CHECKPOINT)
    else:
        model_config = config(size, layers, depth, vocab_size)
        for name, number in json.loads((TINY / "config.json").read_text()).items():
            if name.endswith("_token_id"):
                setattr(model_config, name, number)
        write_checkpoint(work / CHECKPOINT, model_config)
        for name in SETTINGS:
            shutil.copyfile(TINY / name, work / CHECKPOINT / name)
    for name in PREPROCESSORS:
        processor = json.loads((TINY / name).read_text())
        (work / CHECKPOINT / name).write_text(json.dumps({**processor, "size": PIXELS}))


def write_prompt(work: Path, context: int) -> None:
    """A prompt of so many tokens in the file that `prompt_file` names: random words that are one token each."""
    import tokenizers
    from decoder_sides import prompt_file

    tokenizer = tokenizers.Tokenizer.from_file(str(work / CHECKPOINT / "tokenizer.json"))
    words = [tokenizer.decode([number]) for number in range(tokenizer.get_vocab_size())]
    words = [word for word in words if word[:1] == " " and word[1:].isalpha() and len(tokenizer.encode(word)) == 1]
    text = "".join(np.random.default_rng(0).choice(words, context))
    ids = tokenizer.encode(text).ids
    assert len(ids) == context
    prompt_file(work, context).write_text(json.dumps({"text": text, "ids": ids}))


def make_ours(work: Path, name: str, precision: str, target: str = "ort") -> None:
    """`work/<name>`: the artifact in a precision. A recipe that is there already is used, so that it can be changed."""
    import yaml

    from qwen3vl_export.exporter.pipeline import build
    from qwen3vl_export.recipe import load_recipe

    path = work / (RECIPE if target == "ort" else f"{target}-{RECIPE}")
    if not path.exists():
        recipe = {"name": path.stem, "checkpoint": {"source": str(work / CHECKPOINT)}, "target": target}
        path.write_text(yaml.safe_dump({**recipe, "dtype": "float32", "precisions": PRECISIONS}))
    build(load_recipe(path.with_stem(f"{path.stem}-{precision}")), out=work / name, log=lambda line: None)
