"""A checkpoint's `config.json`: read, and refused if it asks for what is not exported. Knows nothing about weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeAlias

from transformers import Qwen3VLConfig, Qwen3VLMoeConfig

from ...errors import CheckpointError
from .unsupported import refuse_other_weights

Config: TypeAlias = Qwen3VLConfig | Qwen3VLMoeConfig
CONFIGS = {"qwen3_vl": Qwen3VLConfig, "qwen3_vl_moe": Qwen3VLMoeConfig}  # by model_type


def read_config(root: Path) -> Config:
    """The configuration of a checkpoint's directory, as transformers reads it.

    Raises:
        CheckpointError: there is none, it is of another architecture, or it lacks what has no safe default.
    """
    path = root / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{root}: no config.json here", "Point to the directory of a Qwen3-VL checkpoint")
    try:
        raw = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})", "Download the checkpoint again") from error
    model_type = raw.get("model_type")
    if model_type not in CONFIGS:
        raise CheckpointError(
            f"{path}: model_type is {model_type!r}, this tool exports {' and '.join(CONFIGS)}",
            "Use a Qwen3-VL checkpoint",
        )
    refuse_other_weights(path, raw)
    text = raw.get("text_config", {})
    if model_type == "qwen3_vl_moe" and text.get("hidden_act") != "silu":
        raise CheckpointError(
            f"{path}: text_config.hidden_act is {text.get('hidden_act')!r}, experts are exported with 'silu' only",
            "Use a Qwen3-VL checkpoint",
        )
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    theta = rope.get("rope_theta", text.get("rope_theta"))
    if "mrope_section" not in rope or theta is None:
        raise CheckpointError(
            f"{path}: text_config says no rope_theta or mrope_section; a default would be silently wrong",
            "Take config.json from the published checkpoint",
        )
    config: Config = CONFIGS[model_type].from_dict(raw)
    if config.text_config.rope_parameters.get("rope_theta") != theta:
        raise CheckpointError(f"{path}: rope_theta {theta} was not understood", "Check text_config.rope_parameters")
    return config
