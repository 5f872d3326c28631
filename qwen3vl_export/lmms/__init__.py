"""The entry point of lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval): its model `qwen3vl_export`.

    lmms-eval --model qwen3vl_export --model_args artifact=artifacts/tiny --tasks docvqa_val

lmms-eval reads the entry points of the group `lmms_eval.models` whenever it starts; so nothing heavy is imported here.
"""

from __future__ import annotations

from typing import Any

NAME = "qwen3vl_export"
MODEL = f"{__name__}.model.ArtifactModel"


def manifest() -> Any:
    """lmms-eval's `ModelManifest` of the model."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=NAME, chat_class_path=MODEL)
