"""`zoo.html`: one self-contained page over a store: every artifact, its precision, size, verdict, speed and reports.

Made from the manifests and summaries in the store alone, whichever fleets put them there. Several fleets may write it
at once: each looks again after writing, so that the last page knows everything. Judges nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..artifact import MANIFEST, PARITY, SUMMARY, Manifest
from ..console import format_size
from ..contract import TIERS
from ..errors import ArtifactError, FleetError
from .graph import FOLDERS
from .store import Store

ZOO = "zoo.html"
TEMPLATE = "zoo.html.j2"
HTML = "parity.html"
PARTS = (("vision_encoder", "vision"), ("embeddings", "table"), ("decoder_model_merged", "decoder"))

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Report:
    """One verification: where it lies and what it found."""

    path: str
    summary: Json

    @property
    def passed(self) -> bool:
        return self.summary["passed"] is True

    @property
    def speed(self) -> float | None:
        """Tokens a second of the artifact's own answers, reading the prompts included; None if it gave none."""
        clocked = self.summary["speed"]
        return clocked["new_tokens"] / (clocked["prompt_seconds"] + clocked["new_seconds"]) if clocked else None

    @property
    def machine(self) -> str:
        hardware = self.summary["hardware"]
        return f"{hardware['processor']}, {hardware['cores']} cores"


@dataclass(frozen=True)
class Entry:
    """One artifact, and its reports, of the largest matrix first."""

    path: str
    manifest: Manifest
    reports: Sequence[Report]

    @property
    def precision(self) -> str:
        return precision(self.manifest.recipe)

    @property
    def verdict(self) -> str:
        """`good` if every report passed, `bad` if one did not, `none` where there is none."""
        return "none" if not self.reports else "good" if all(one.passed for one in self.reports) else "bad"

    @property
    def sizes(self) -> str:
        """Which picture sizes it takes."""
        vision = self.manifest.recipe["vision"]
        sizes = ["x".join(map(str, reversed(size))) for size in vision["sizes"]]  # width x height
        return "any size" if vision["grid"] == "dynamic" else sizes[0] if len(sizes) == 1 else f"{len(sizes)} sizes"


def precision(recipe: Json) -> str:
    """`float32`; `vision int8, decoder int4` where parts are quantized, the rest being in the recipe's dtype."""
    plans = recipe.get("quantization") or {}
    methods = {name: (plans.get(graph) or {}).get("method", "none") for graph, name in PARTS}
    if set(methods.values()) == {"none"}:
        return str(recipe["dtype"])
    if len(set(methods.values())) == 1:
        return str(methods["decoder"])
    parts = [f"{name} {recipe['dtype'] if method == 'none' else method}" for name, method in methods.items()]
    return ", ".join(parts)


def entries(store: Store) -> list[Entry]:
    """Every artifact in a store: of one checkpoint together, by name."""
    reports: dict[str, list[Report]] = {}
    for path, data in found(store, FOLDERS["merge"], PARITY, SUMMARY):
        summary = json.loads(data)
        reports.setdefault(summary["manifest_sha256"], []).append(Report(path, summary))
    listed = []
    for path, data in found(store, FOLDERS["build"], MANIFEST, MANIFEST):
        own = reports.get(hashlib.sha256(data).hexdigest(), [])
        own.sort(key=lambda report: (-TIERS.index(report.summary["matrix"]), report.path))
        listed.append(Entry(path, Manifest.from_json(data, f"{path}/{MANIFEST}"), own))
    listed.sort(key=lambda entry: (natural(entry.manifest.checkpoint["source"]), natural(entry.manifest.name)))
    return listed


def found(store: Store, folder: str, proof: str, name: str) -> Iterator[tuple[str, bytes]]:
    """One file of every whole directory in a folder."""
    for directory in store.names(folder):
        path = f"{folder}/{directory}"
        if store.has(f"{path}/{proof}"):
            yield path, store.read(f"{path}/{name}")


def natural(text: str) -> list[tuple[int, str]]:
    """Sort key by which 4b comes before 30b."""
    return [(int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", text)]


def render(listed: Sequence[Entry]) -> str:
    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent, Path(__file__).parents[1]]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["size"] = format_size
    counts = {verdict: sum(entry.verdict == verdict for entry in listed) for verdict in ("good", "bad", "none")}
    return environment.get_template(TEMPLATE).render(
        entries=listed, counts=counts, bytes=sum(entry.manifest.bytes for entry in listed), html=HTML, manifest=MANIFEST
    )


def write_zoo(store: Store) -> None:
    """Write the page, again if another fleet added something meanwhile.

    Raises:
        FleetError: a manifest in the store cannot be read.
    """
    before: list[list[str]] | None = None
    while (now := [store.names(FOLDERS[kind]) for kind in ("build", "merge")]) != before:
        before = now
        try:
            page = render(entries(store))
        except (ArtifactError, ValueError, KeyError, TypeError) as error:
            reason = error.what if isinstance(error, ArtifactError) else error
            raise FleetError(
                f"{store.url}: holds what this version cannot read ({reason})", "Choose another --store"
            ) from error
        store.replace(ZOO, page.encode())
