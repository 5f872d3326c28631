"""What is fuzzed: each target makes inputs of one kind from a seed, and opens what reads them. Knows their names."""

from __future__ import annotations

from .artifacts import Manifests, Settings
from .base import Target
from .checkpoints import Checkpoints, Weights
from .messages import Messages, Urls
from .pictures import Pictures
from .recipes import Recipes
from .templates import Templates

TARGETS: dict[str, type[Target]] = {
    target.name: target
    for target in (Pictures, Recipes, Manifests, Settings, Templates, Messages, Urls, Checkpoints, Weights)
}
