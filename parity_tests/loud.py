"""A checkpoint whose activations are large: the trained tiny model, its residual streams 64 times as loud.

Everything that is added to a stream (embeddings, output projections, biases) is scaled by a power of two, so that the
values stay within half precision's range and their squares leave it; norms take the factor out again, so that what the
model says stays what it was trained to say. A norm that squares in half precision makes infinity of it.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from .upcycle import TINY, WEIGHTS

GAIN = 64.0
ADDED = re.compile(  # to the decoder's stream, and to the tower's
    r"language_model\.(embed_tokens|layers\.\d+\.(self_attn\.o_proj|mlp\.down_proj))\.weight"
    r"|visual\.(pos_embed|patch_embed\.proj|blocks\.\d+\.(attn\.proj|mlp\.linear_fc2))\.(weight|bias)"
)
HEAD_NORM = "model.language_model.norm.weight"  # in front of the head, which is tied to the loud embeddings


def write_loud_checkpoint(directory: Path, gain: float = GAIN) -> Path:
    """Write the checkpoint; `gain` must be a power of two."""
    shutil.copytree(TINY, directory, dirs_exist_ok=True)
    tensors = load_file(TINY / WEIGHTS)
    loud = {name: tensor * gain for name, tensor in tensors.items() if ADDED.search(name)}
    loud[HEAD_NORM] = tensors[HEAD_NORM] / gain
    save_file({**tensors, **loud}, directory / WEIGHTS, metadata={"format": "pt"})
    return directory
