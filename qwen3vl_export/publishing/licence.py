"""The licence of a published artifact: a file, or what the checkpoint's model card declares.

Published checkpoints have no licence file; the front matter of their model cards names the licence, and so does that
of an artifact made from them. Knows the first lines of licences; nothing else about cards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..artifact import Artifact
from ..errors import PublishError

LICENCE = "LICENSE"
TITLES = {"Apache License": "apache-2.0", "MIT License": "mit"}


@dataclass(frozen=True)
class Licence:
    """A licence, as the Hub's model cards name it.

    Attributes:
        front_matter: keys of a model card: `license`, and if that is `other`, perhaps `license_name`, `license_link`.
        file: name of the file with its text; "" if there is none.
        text: that of a file that is not the artifact's own; "" if there is none.
    """

    front_matter: Mapping[str, str]
    file: str = ""
    text: str = ""


def licence_of(artifact: Artifact, given: Path | None) -> Licence:
    """The checkpoint's licence: the file given, else one in the artifact, else what its model card declared.

    Raises:
        PublishError: there is none, or the file is not text.
    """
    names = sorted(name for name in artifact.manifest.files if name.startswith(LICENCE))
    declared: Mapping[str, str] = artifact.manifest.checkpoint.get("licence", {})
    if given is not None:
        if not given.is_file():
            raise PublishError(f"{given}: no such file", "Pass the checkpoint's licence with --license FILE")
        text = read_text(given)
        return Licence({"license": licence_id(text)}, names[0] if names else LICENCE, "" if names else text)
    if names:
        return Licence({"license": licence_id(read_text(artifact.root / names[0]))}, names[0])
    if declared:
        return Licence(declared)
    raise PublishError(
        f"{artifact.root}: no {LICENCE}, and a model is not published without one",
        "Pass the checkpoint's with --license FILE",
    )


def read_text(path: Path) -> str:
    """The text of a licence file.

    Raises:
        PublishError: it is not UTF-8.
    """
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise PublishError(f"{path}: is not a text", "Pass the checkpoint's licence with --license FILE") from None


def licence_id(text: str) -> str:
    """`apache-2.0`; `other` for a licence this does not know by its first lines."""
    return next((known for title, known in TITLES.items() if title in text[:400]), "other")
