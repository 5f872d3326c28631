"""Artifacts: mutated manifests, and mutated settings whose manifest names them as they are.

What reads them is what `run` calls: the artifact is opened, its files are checked, a prompt with a picture and frames
is prepared, and a token of an answer is drawn.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from ..mutations import Json, dump, mutate_bytes, mutate_value
from .base import Target, named, picture_file, replaced, split_name

MANIFEST = "manifest.json"
SETTINGS = (  # by how often they are mutated
    *("generation_config.json", "preprocessor_config.json", "video_preprocessor_config.json") * 4,
    *("tokenizer_config.json",) * 2,
    *("tokenizer.json", "config.json"),
)


class Manifests(Target):
    name, inputs = "manifests", 150

    def __init__(self, artifact: Path) -> None:
        super().__init__(artifact)
        self.manifest: Json = json.loads((artifact / MANIFEST).read_text("utf-8"))

    def make(self, random: Random) -> bytes:
        return dump(random, mutate_value(random, shrink(self.manifest)))

    def open(self, box: Path) -> Callable[[bytes], object]:
        from qwen3vl_export.artifact import open_artifact
        from qwen3vl_export.inspection import inspect_path
        from qwen3vl_export.runtime import Qwen3VL

        root = box / "artifact"
        shutil.copytree(self.artifact, root)

        def read(data: bytes) -> None:
            with replaced(root / MANIFEST, data):
                opened = open_artifact(root)
                for artifact in opened.every_precision:
                    model = Qwen3VL(artifact)
                    model.sessions.open("embed_tokens")
                    prepare(model)
                inspect_path(root)

        read((root / MANIFEST).read_bytes())
        return read


def shrink(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with few of the statistics of its build, which would else receive most mutations."""
    graphs = {name: {**graph, "stages": graph["stages"][:1]} for name, graph in manifest["graphs"].items()}
    return {**manifest, "graphs": graphs}


def prepare(model: Any) -> Any:
    """Prepare a prompt with a picture and a video of two frames."""
    import numpy as np

    from qwen3vl_export.runtime import Image, Video

    frames = np.zeros((2, 32, 64, 3), np.uint8)
    content = [Image(picture_file("PNG")), Video(frames), "What is this?"]
    return model.prepare([[{"role": "user", "content": content}]])


class Settings(Target):
    name, inputs = "settings", 200

    def __init__(self, artifact: Path) -> None:
        super().__init__(artifact)
        self.values: dict[str, Json] = {
            name: json.loads((artifact / name).read_text("utf-8")) for name in sorted(set(SETTINGS))
        }

    def make(self, random: Random) -> bytes:
        name = random.choice(SETTINGS)
        value = self.values[name]
        if name == "generation_config.json":
            value = {
                **value,
                "temperature": 0.7,
                "top_k": 20,
                "top_p": 0.8,
                "repetition_penalty": 1.0,
                "do_sample": True,
            }
        if name == "tokenizer.json" and random.random() < 0.3:
            return named(name, mutate_bytes(random, json.dumps(value).encode()))
        return named(name, dump(random, mutate_value(random, value)))

    def open(self, box: Path) -> Callable[[bytes], object]:
        return open_settings(self.artifact, box)


def open_settings(source: Path, box: Path) -> Callable[[bytes], None]:
    """What reads one file of settings, given by name: everything up to a drawn token."""
    from qwen3vl_export.runtime import Qwen3VL

    root = box / "artifact"
    shutil.copytree(source, root)
    sessions = Qwen3VL.load(root).sessions

    def read(data: bytes) -> None:
        name, content = split_name(data)
        with replaced(root / name, content):
            model = Qwen3VL.load(root, check=False)
            model.sessions = sessions  # the graphs are the same, and stay open
            prepare(model)
            model.generate("Hi", 2)

    read(named("generation_config.json", (root / "generation_config.json").read_bytes()))
    return read
