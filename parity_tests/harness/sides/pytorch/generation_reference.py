"""How transformers would choose and end answers: the settings of a model that is loaded from a checkpoint.

`generate` fills what they leave open with its own defaults. Loading a model takes long, so the method that gives a
loaded model its settings runs on a stand-in.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import GenerationConfig
from transformers.generation import GenerationMixin

from .reference import eos_ids

OFF = {"do_sample": False, "top_k": 0, "min_p": 0.0, "presence_penalty": 0.0}  # where nothing is set anywhere


class GenerationReference:
    """The generation settings of one checkpoint directory.

    Attributes:
        stop_ids: the ids that end an answer.
    """

    def __init__(self, checkpoint: Path) -> None:
        model: Any = SimpleNamespace(can_generate=lambda: True)
        GenerationMixin.adjust_generation_fn(
            model, None, False, None, checkpoint, None, False, None, True, None, "main", "", False
        )
        config: GenerationConfig = model.generation_config
        stored = {name: value for name, value in config.to_dict().items() if value is not None}
        self.values: dict[str, Any] = {**OFF, **GenerationConfig._get_default_generation_params(), **stored}
        self.stop_ids = [] if config.eos_token_id is None else eos_ids(config)

    def sampling(self, name: str) -> Any:
        """The value of a setting that decides which token is chosen."""
        return self.values[name]
