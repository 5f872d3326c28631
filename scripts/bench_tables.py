"""The figures of `bench.py` for people: tables with ratios, and a picture.

A ratio is a side's time, bytes or seconds over those of the first side of ours: above 1, ours is faster or smaller.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

Figures = dict[str, Any]


def ratio(side: Mapping[str, float], ours: Mapping[str, float] | None, key: str) -> str:
    """` (1.20x)`, or nothing where there is nothing to compare with."""
    return "" if ours is None or side is ours else f" ({side[key] / ours[key]:.2f}x)"


def tables(figures: Figures) -> Iterator[Table]:
    """Each side beside the first of ours."""
    yield texts(figures)
    if "photograph" in figures:
        yield pictures(figures["photograph"], figures["ours"])


def texts(figures: Figures) -> Table:
    """Prompts of text: decoding, prefill and memory."""
    roof = figures["roofline"]
    title = f"{roof['bandwidth'] / 1e9:.1f} GB/s read, {roof['gemm'] / 1e9:.0f} GF/s GEMM"
    columns = ("tokens", "side", "decode ms", "of limit", "prefill tok/s", "resident GB", "peak GB", "opening s")
    table = Table(*columns, title=title)
    for context, sides in figures["contexts"].items():
        ours = next((of for name, of in sides.items() if name in figures["ours"]), None)
        for name, of in sides.items():
            if "refused" in of:
                table.add_row(context, name, of["refused"])
                continue
            table.add_row(
                context,
                name,
                f"{of['decode'] * 1e3:.1f}{ratio(of, ours, 'decode')}",
                f"{of['limit'] / of['decode']:.0%}" if "limit" in of else "",
                f"{int(context) / of['prefill']:.0f}{ratio(of, ours, 'prefill')}",
                f"{of['resident'] / 1e9:.2f}{ratio(of, ours, 'resident')}",
                f"{of['peak'] / 1e9:.2f}{ratio(of, ours, 'peak')}",
                f"{of['opening']:.1f}{ratio(of, ours, 'opening')}",
            )
        table.add_section()
    return table


def pictures(sides: Mapping[str, Mapping[str, Any]], names_of_ours: list[str]) -> Table:
    """A photograph and a question: the first token, and those after it."""
    table = Table("side", "tokens", "first token s", "decode ms", "resident GB", "peak GB", title="a photograph")
    ours = next((of for name, of in sides.items() if name in names_of_ours and "refused" not in of), None)
    for name, of in sides.items():
        if "refused" in of:
            table.add_row(name, "", of["refused"])
            continue
        table.add_row(
            name,
            f"{of['tokens']:.0f}",
            f"{of['first_token']:.2f}{ratio(of, ours, 'first_token')}",
            f"{of['decode'] * 1e3:.1f}{ratio(of, ours, 'decode')}",
            f"{of['resident'] / 1e9:.2f}{ratio(of, ours, 'resident')}",
            f"{of['peak'] / 1e9:.2f}{ratio(of, ours, 'peak')}",
        )
    return table


def chart(figures: Path) -> None:
    """Draw the figures of a JSON file as a PNG beside it: time per token and prompt speed by context and side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = json.loads(figures.read_text())
    contexts = list(found["contexts"])
    picture, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    places = [int(context) for context in contexts]
    for name in found["contexts"][contexts[0]]:
        of = [found["contexts"][context][name] for context in contexts]
        if any("refused" in figures_of for figures_of in of):
            continue
        (line,) = left.plot(places, [one["decode"] * 1e3 for one in of], marker="o", label=name)
        right.plot(places, [place / one["prefill"] for place, one in zip(places, of, strict=True)], marker="o")
        if all("limit" in one for one in of):
            left.plot(places, [one["limit"] * 1e3 for one in of], color=line.get_color(), linestyle=":")
    left.set(title="decode, ms per token (dotted: memory limit)", xlabel="tokens of context", ylim=(0, None))
    right.set(title="prefill, tokens per second", xlabel="tokens of prompt", ylim=(0, None))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xticks(places)
    left.legend(frameon=False)
    about = found["about"]
    picture.suptitle(f"{about['size']} shape, {about['layers']} layers, {about['threads']} threads, {about['cpu']}")
    picture.savefig(figures.with_suffix(".png"), dpi=130)
    pyplot.close(picture)
