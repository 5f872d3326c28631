"""Opens a model with the options that all commands have which run an artifact.

Knows options; the runtime is imported when a model is opened, so that other commands start without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .devices import provider_options

if TYPE_CHECKING:
    from ..runtime import Qwen3VL


def load(
    artifact: Path,
    threads: int | None,
    allow_private_urls: bool,
    precision: str,
    min_pixels: int | None,
    max_pixels: int | None,
    device: str,
    provider_option: list[str] | None,
) -> Qwen3VL:
    """The model of an artifact, whose graphs are being opened.

    Args:
        provider_option: `KEY=VALUE` pairs.

    Raises:
        ArtifactError, InputError: as `Qwen3VL.load`, or a pair is not one.
    """
    from ..runtime import Qwen3VL, UrlRules

    rules = UrlRules(allow_private=allow_private_urls)
    return Qwen3VL.load(
        artifact,
        threads,
        url_rules=rules,
        precision=precision,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        device=device,
        provider_options=provider_options(provider_option),
        open_ahead=True,
    )
