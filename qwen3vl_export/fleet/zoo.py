"""`zoo.html`: one self-contained page about a store: every artifact, its precision, size, verdict, speed and reports.

Made from the manifests and summaries in the store, of all fleets. Several fleets may write it at once: each checks the
store again after writing, so that the last page is complete. Judges nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..artifact import PARITY, SUMMARY
from ..console import format_size
from ..contract import TIERS
from ..errors import ArtifactError, FleetError
from ..evidence import Summary
from ..json_form import from_json
from ..manifest import MANIFEST, Manifest
from ..promise import cache_dtype
from .graph import FOLDERS
from .store import Store

ZOO = "zoo.html"
TEMPLATE = "zoo.html.j2"
HTML = "parity.html"
PARTS = (("vision_encoder", "vision"), ("embeddings", "table"), ("decoder_model_merged", "decoder"))

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Verification:
    """A verification: its path in the store and its summary."""

    path: str
    summary: Summary

    @property
    def speed(self) -> float | None:
        """Tokens a second of the artifact's answers, reading the prompts included; None if there were none."""
        return None if self.summary.speed is None else self.summary.speed.answer_rate

    @property
    def machine(self) -> str:
        return f"{self.summary.hardware.processor}, {self.summary.hardware.cores} cores"


@dataclass(frozen=True)
class Entry:
    """An artifact and its verifications, the largest matrix first."""

    path: str
    manifest: Manifest
    reports: Sequence[Verification]

    @property
    def precision(self) -> str:
        return precision(self.manifest.recipe)

    @property
    def verdict(self) -> str:
        """`good` if every verification passed, `bad` if one did not, `none` if there is none."""
        return (
            "none" if not self.reports else "good" if all(report.summary.passed for report in self.reports) else "bad"
        )

    @property
    def sizes(self) -> str:
        """The picture sizes it accepts."""
        vision = self.manifest.recipe["vision"]
        sizes = ["x".join(map(str, reversed(size))) for size in vision["sizes"]]  # width x height
        return "any size" if vision["grid"] == "dynamic" else sizes[0] if len(sizes) == 1 else f"{len(sizes)} sizes"


def precision(recipe: Json) -> str:
    """`float32`; `vision int8, decoder int4` where parts are quantized and the rest is in the recipe's dtype."""
    cache = cache_dtype(recipe)
    return weight_precision(recipe) + ("" if cache == "float" else f", cache {cache}")


def weight_precision(recipe: Json) -> str:
    """As `precision`, of the weights alone."""
    plans = recipe.get("quantization") or {}
    methods = {name: (plans.get(graph) or {}).get("method", "none") for graph, name in PARTS}
    if set(methods.values()) == {"none"}:
        return str(recipe["dtype"])
    if len(set(methods.values())) == 1:
        return str(methods["decoder"])
    parts = [f"{name} {recipe['dtype'] if method == 'none' else method}" for name, method in methods.items()]
    return ", ".join(parts)


def entries(store: Store) -> list[Entry]:
    """Every artifact in a store, sorted by checkpoint and name."""
    reports: dict[str, list[Verification]] = {}
    for path, data in read_each(store, FOLDERS["merge"], PARITY, SUMMARY):
        summary = from_json(Summary, data)
        reports.setdefault(summary.manifest_sha256, []).append(Verification(path, summary))
    artifacts = []
    for path, data in read_each(store, FOLDERS["build"], MANIFEST, MANIFEST):
        verifications = reports.get(hashlib.sha256(data).hexdigest(), [])
        verifications.sort(key=lambda report: (-TIERS.index(report.summary.matrix), report.path))
        artifacts.append(Entry(path, Manifest.from_json(data, f"{path}/{MANIFEST}"), verifications))
    artifacts.sort(
        key=lambda entry: (natural_key(entry.manifest.checkpoint["source"]), natural_key(entry.manifest.name))
    )
    return artifacts


def read_each(store: Store, folder: str, proof: str, name: str) -> Iterator[tuple[str, bytes]]:
    """The path of every complete directory in a folder, and one of its files.

    Args:
        proof: the file whose presence means that a directory is complete.
        name: the file to read.
    """
    for directory in store.names(folder):
        path = f"{folder}/{directory}"
        if store.has(f"{path}/{proof}"):
            yield path, store.read(f"{path}/{name}")


def natural_key(text: str) -> list[tuple[int, str]]:
    """A sort key that puts 4b before 30b."""
    return [(int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", text)]


def render(artifacts: Sequence[Entry]) -> str:
    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent, Path(__file__).parents[1]]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["size"] = format_size
    counts = {verdict: sum(entry.verdict == verdict for entry in artifacts) for verdict in ("good", "bad", "none")}
    return environment.get_template(TEMPLATE).render(
        entries=artifacts,
        counts=counts,
        bytes=sum(entry.manifest.bytes for entry in artifacts),
        html=HTML,
        manifest=MANIFEST,
    )


def write_zoo(store: Store) -> None:
    """Write the page, and again if another fleet adds something meanwhile.

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
