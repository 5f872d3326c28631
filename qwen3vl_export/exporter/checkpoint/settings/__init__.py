"""A checkpoint's settings as transformers reads them, in the files that every runtime of an artifact reads.

transformers' own classes are asked, whatever form the settings are stored in: published, saved by transformers 5, or
written by other trainers. A stored file that already says what they read is kept byte for byte; the others are written
in the published form. What no runtime can follow is refused. Knows nothing about weights and graphs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ....contract import Facts
from .generation import FILE as GENERATION
from .generation import read_generation
from .pictures import IMAGES, VIDEOS, read_images, read_videos
from .sources import check_json
from .template import FILE as TEMPLATE
from .template import read_template, template_bytes
from .tokens import CONFIG, TOKENIZER, config_bytes, load_tokenizer, tokenizer_bytes


@dataclass(frozen=True)
class Settings:
    """Attributes:
    files: content of each settings file of an artifact, by name.
    warnings: lines about what was chosen or is ignored.
    """

    files: Mapping[str, bytes]
    warnings: tuple[str, ...] = ()

    def write(self, directory: Path) -> None:
        """Write every file."""
        for name, content in self.files.items():
            (directory / name).write_bytes(content)

    @contextmanager
    def unpacked(self) -> Iterator[Path]:
        """A directory with every file, while inside."""
        with tempfile.TemporaryDirectory(prefix="settings-") as directory:
            self.write(Path(directory))
            yield Path(directory)


def read_settings(root: Path, facts: Facts) -> Settings:
    """The settings of a checkpoint's directory.

    Raises:
        CheckpointError: settings that transformers cannot read, that contradict each other or the model, or that no
            runtime follows.
    """
    check_json(root)
    images, videos = read_images(root, facts), read_videos(root, facts)
    tokenizer = load_tokenizer(root, facts)
    template, said_of_template = read_template(root, tokenizer)
    generation, said_of_generation = read_generation(root, facts, tokenizer.special_tokens_map.get("eos_token", ""))
    files = {
        "config.json": (root / "config.json").read_bytes(),
        GENERATION: generation,
        IMAGES: images,
        VIDEOS: videos,
        TEMPLATE: template_bytes(template, root),
        TOKENIZER: tokenizer_bytes(tokenizer, root),
        CONFIG: config_bytes(tokenizer, root, template),
    }
    return Settings(files, said_of_template + said_of_generation)
