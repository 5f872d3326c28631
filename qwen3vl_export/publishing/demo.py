"""The demo page: static files that run the artifact in the same directory, in a browser.

They are in `docs/demo` of the repository, or beside the recipes of an installed package. Knows where they are; nothing
about their content.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from ..artifact import Artifact
from ..errors import PublishError
from ..packaging.browsers import WASM, browser_support, may_load
from ..promise import TRANSFORMERS_JS

PAGE = "index.html"
FOLDERS = (
    Path(__file__).resolve().parents[2] / "docs" / "demo",
    Path(sys.prefix) / "share" / "qwen3vl-export" / "demo",
)


def demo_files(artifact: Artifact) -> dict[str, bytes]:
    """The page's files, by their path from `index.html`.

    Raises:
        PublishError: the artifact is not packaged for transformers.js, no browser loads it in any of its precisions, or
            the files are missing.
    """
    if TRANSFORMERS_JS not in artifact.manifest.recipe["packaging"]["runtimes"]:
        raise PublishError(
            f"{artifact.root}: is not packaged for {TRANSFORMERS_JS}, which the demo page runs it with",
            "Publish it without --demo, or rebuild it with vision.grid: dynamic",
        )
    if not any(may_load(browser_support(precision)) for precision in artifact.every_precision):
        raise PublishError(
            f"{artifact.root}: loads in no browser ({browser_support(artifact)[WASM]})",
            "Publish it without --demo, or rebuild it with --precision web",
        )
    folder = next((folder for folder in FOLDERS if (folder / PAGE).is_file()), None)
    if folder is None:
        raise PublishError("the demo page is not part of this installation", "Install qwen3vl-export again")
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def unloadable_precisions(artifact: Artifact) -> Iterator[str]:
    """A warning for every precision that no browser loads, so that the page cannot either."""
    for precision in artifact.every_precision:
        support = browser_support(precision)
        if not may_load(support):
            name = f"?dtype={precision.precision}" if precision.precision else "the default precision"
            yield f"warning: the page cannot load {name} ({support[WASM]})"
