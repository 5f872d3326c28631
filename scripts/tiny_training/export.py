"""Writes the checkpoint as a stock transformers folder, weights in bfloat16.

Knows the files of a Qwen3-VL repository. The chat template is copied from the checkpoint that is under version control.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import Qwen3VLForConditionalGeneration

from scripts.tiny_training.patches import MAX_PIXELS, MERGE, MIN_PIXELS, PATCH, TEMPORAL
from scripts.tiny_training.tokenizer import save_tokenizer

CHAT_TEMPLATE = Path(__file__).parents[2] / "recipes" / "checkpoints" / "tiny" / "chat_template.jinja"
MAX_VIDEO_PIXELS = 4 * MAX_PIXELS
PROCESSOR = {
    "patch_size": PATCH,
    "temporal_patch_size": TEMPORAL,
    "merge_size": MERGE,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "processor_class": "Qwen3VLProcessor",
}


def export(model: Qwen3VLForConditionalGeneration, tokenizer: Tokenizer, folder: Path) -> None:
    """The trained model itself is left as it is, in float32."""
    folder.mkdir(parents=True, exist_ok=True)
    copy = Qwen3VLForConditionalGeneration(model.config)
    copy.load_state_dict(model.state_dict())
    copy.generation_config = model.generation_config
    copy.to(torch.bfloat16).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    write_json(
        folder / "preprocessor_config.json",
        {
            "size": {"longest_edge": MAX_PIXELS, "shortest_edge": MIN_PIXELS},
            **PROCESSOR,
            "image_processor_type": "Qwen2VLImageProcessorFast",
        },
    )
    write_json(
        folder / "video_preprocessor_config.json",
        {
            "size": {"longest_edge": MAX_VIDEO_PIXELS, "shortest_edge": MIN_PIXELS},
            **PROCESSOR,
            "video_processor_type": "Qwen3VLVideoProcessor",
        },
    )
    if CHAT_TEMPLATE.parent.resolve() != folder.resolve():
        shutil.copyfile(CHAT_TEMPLATE, folder / CHAT_TEMPLATE.name)
    dtypes = {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()}
    if dtypes != {torch.bfloat16}:
        raise ValueError(f"{folder}/model.safetensors: expected bfloat16 only, found {dtypes}")


def write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
