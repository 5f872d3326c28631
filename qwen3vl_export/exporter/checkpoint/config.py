"""A checkpoint's `config.json`, read as transformers reads it and refused if it asks for what is not exported.

Knows files and architectures; nothing about weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias

from transformers import Qwen3VLConfig, Qwen3VLMoeConfig

from ...errors import CheckpointError
from .supported import check_supported
from .unsupported import refuse_other_weights

Config: TypeAlias = Qwen3VLConfig | Qwen3VLMoeConfig
CONFIGS = {"qwen3_vl": Qwen3VLConfig, "qwen3_vl_moe": Qwen3VLMoeConfig}  # by model_type
PUBLISHED = "Take config.json from the published checkpoint"
NEIGHBOURS = {  # by model_type: architectures that are mistaken for this one
    "qwen2_vl": "Qwen2-VL, whose tower has no DeepStack",
    "qwen2_5_vl": "Qwen2.5-VL, whose tower has windows of attention and no DeepStack",
    "qwen2_5_omni": "Qwen2.5-Omni, which also hears and speaks",
    "qwen3": "Qwen3, a language model that sees nothing",
    "qwen3_moe": "Qwen3, a mixture of experts that sees nothing",
    "qwen3_vl_text": "the language model of Qwen3-VL without its tower",
    "qwen3_vl_moe_text": "the language model of Qwen3-VL without its tower",
    "qwen3_omni_moe": "Qwen3-Omni, which also hears and speaks",
    "qwen3_5": "Qwen3.5, whose decoder has layers of linear attention and no DeepStack",
    "qwen3_5_moe": "Qwen3.5, whose decoder has layers of linear attention and no DeepStack",
}


def read_config(root: Path) -> Config:
    """The configuration of a checkpoint's directory, as transformers reads it.

    Raises:
        CheckpointError: there is none, it is of another architecture, it lacks what has no safe default, or it asks for
            what transformers cannot compute or this package does not export.
    """
    path = root / "config.json"
    raw = _read_object(path)
    model_type = raw.get("model_type")
    config_class = CONFIGS.get(model_type) if isinstance(model_type, str) else None
    if config_class is None:
        raise _refuse_architecture(path, model_type)
    _check_theta(path, raw)
    refuse_other_weights(path, raw)
    try:
        config: Config = config_class.from_dict(raw)
    except Exception as error:  # of any class: transformers validates types alone, and fails where values are used
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{path}: transformers cannot read it ({reason})", PUBLISHED) from error
    check_supported(path, config)
    return config


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path.parent}: no config.json here", "Point to the directory of a Qwen3-VL checkpoint")
    try:
        raw = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})", "Download the checkpoint again") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})", "Check its permissions") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: a JSON object is needed, this is {json.dumps(raw)[:40]}", PUBLISHED)
    return raw


def _refuse_architecture(path: Path, model_type: object) -> CheckpointError:
    neighbour = NEIGHBOURS.get(model_type) if isinstance(model_type, str) else None
    return CheckpointError(
        f"{path}: model_type is {model_type!r}{f' ({neighbour})' if neighbour else ''}, this tool exports "
        f"{' and '.join(CONFIGS)}",
        "Use a Qwen3-VL checkpoint",
    )


def _check_theta(path: Path, raw: dict[str, Any]) -> None:
    """transformers' own default is that of no published checkpoint."""
    text = raw.get("text_config")
    text = text if isinstance(text, dict) else {}
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise CheckpointError(f"{path}: text_config's rotary settings are {rope!r}, an object is needed", PUBLISHED)
    theta = rope.get("rope_theta", text.get("rope_theta"))
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not theta > 0:
        stated = "states no rope_theta; a default" if theta is None else f"has rope_theta {theta!r}; the frequencies"
        raise CheckpointError(f"{path}: text_config {stated} would be silently wrong", PUBLISHED)
