"""The licence of a checkpoint: its files, else what its model card declares. Knows nothing about other files."""

from __future__ import annotations

from pathlib import Path

import yaml

CARD = "README.md"
KEYS = ("license", "license_name", "license_link")  # of a model card's front matter, as the Hub defines them
FENCE = "---"


def licence_files(root: Path) -> list[Path]:
    """Its licence files."""
    return sorted(path for path in root.glob("LICENSE*") if path.is_file())


def declared_licence(root: Path) -> dict[str, str]:
    """What the front matter of its model card says: `{"license": "apache-2.0"}`; nothing if it says nothing readable.

    Source: https://huggingface.co/docs/hub/model-cards#model-card-metadata
    """
    try:
        lines = (root / CARD).read_text("utf-8-sig").splitlines()
        if not lines or lines[0].rstrip() != FENCE:
            return {}
        end = next((index for index, line in enumerate(lines[1:], 1) if line.rstrip() == FENCE), 0)
        values = yaml.safe_load("\n".join(lines[1:end]))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError):
        return {}
    if not isinstance(values, dict) or not isinstance(values.get("license"), str):
        return {}
    return {key: values[key] for key in KEYS if isinstance(values.get(key), str)}
