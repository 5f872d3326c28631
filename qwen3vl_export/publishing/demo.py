"""The demo page: static files that ask the artifact they lie beside, in a browser.

They are `docs/demo` of the repository; an installed package has them where it has its recipes. Knows where they are,
and nothing about what is in them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..artifact import Artifact
from ..errors import PublishError
from ..packaging import TRANSFORMERS_JS

PAGE = "index.html"
FOLDERS = (
    Path(__file__).resolve().parents[2] / "docs" / "demo",
    Path(sys.prefix) / "share" / "qwen3vl-export" / "demo",
)


def demo_files(artifact: Artifact) -> dict[str, bytes]:
    """The page's files, by name.

    Raises:
        PublishError: the artifact is not laid out for transformers.js, or the files are not there.
    """
    if TRANSFORMERS_JS not in artifact.manifest.recipe["packaging"]["runtimes"]:
        raise PublishError(
            f"{artifact.root}: is not packaged for {TRANSFORMERS_JS}, with which the demo page asks it",
            "Publish it without --demo, or rebuild it with vision.grid: dynamic",
        )
    folder = next((one for one in FOLDERS if (one / PAGE).is_file()), None)
    if folder is None:
        raise PublishError("the demo page is not part of this installation", "Install qwen3vl-export again")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
