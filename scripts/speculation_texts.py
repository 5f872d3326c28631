"""The texts of `bench_speculation.py`: questions and answers as people put them to Qwen3-VL and as it writes them.

Every text is a function of a seed; its numbers and names are random, its form is not. Quotations are from this
project's documentation. Knows how answers look; nothing about models or tokens.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = ("fleet.md", "security.md", "parity.md", "downstream.md")
LABELS = ("person", "car", "bicycle", "traffic light", "dog", "backpack", "bench", "bird", "handbag", "bus")
WORDS = ("north", "paper", "pump", "valve", "office", "chair", "lamp", "cable", "plate", "steel", "glass", "motor")

Asked = tuple[str, str]  # a question and its answer


def boxes(rng: random.Random) -> Asked:
    """Objects in a photograph."""
    labels = rng.sample(LABELS, 5)
    rows = []
    for _ in range(24):
        left, top = rng.randint(0, 850), rng.randint(0, 850)
        box = [left, top, left + rng.randint(20, 149), top + rng.randint(20, 149)]
        rows.append(f'\t{{"bbox_2d": {box}, "label": "{rng.choice(labels)}"}}')
    return "Locate every object in the image, report bbox coordinates in JSON format.", as_json(rows)


def lines_of_text(rng: random.Random) -> Asked:
    """The lines of a page, each with its box."""
    words = prose(rng).split()
    rows = []
    for index in range(18):
        line, words = " ".join(words[:7]), words[7:]
        left, top = rng.randint(40, 60), 30 + 48 * index
        box = [left, top, left + rng.randint(600, 850), top + 36]
        rows.append(f'\t{{"bbox_2d": {box}, "text_content": {json.dumps(line)}}}')
    return "Spot all the text in the image with line-level, and output in JSON format.", as_json(rows)


def markdown_table(rng: random.Random) -> Asked:
    """An invoice."""
    rows = ["| No. | Article | Quantity | Unit | Price | Amount |", "|---|---|---|---|---|---|"]
    for number in range(1, 25):
        count, price = rng.randint(1, 40), rng.randint(100, 9999)
        article = f"{rng.choice(WORDS)} {rng.choice(WORDS)}"
        rows.append(f"| {number} | {article} | {count} | pcs | {price / 100:.2f} | {count * price / 100:.2f} |")
    return "Convert the table in the image to Markdown.", "\n".join(rows)


def html_table(rng: random.Random) -> Asked:
    """A time sheet."""
    rows = ["<table>", "<tr><th>Date</th><th>Name</th><th>Hours</th><th>Project</th></tr>"]
    for day in range(1, 25):
        name, project = rng.choice(WORDS).title(), rng.choice(WORDS)
        rows.append(f"<tr><td>2024-05-{day:02d}</td><td>{name}</td><td>{rng.randint(1, 9)}</td><td>{project}</td></tr>")
    return "Convert the table in the image to HTML.", "\n".join([*rows, "</table>"])


def forms(rng: random.Random) -> Asked:
    """Forms of one kind, filled in."""
    filled = []
    for _ in range(12):
        person = f"Name: {rng.choice(WORDS).title()} {rng.choice(WORDS).title()}"
        born = f"Date of birth: {rng.randint(1, 28):02d}.{rng.randint(1, 12):02d}.{rng.randint(1940, 2010)}"
        lives = f"Street: {rng.choice(WORDS).title()} road {rng.randint(1, 200)}"
        boxes = "Consent given: [x] yes [ ] no\nNewsletter: [ ] yes [x] no\nSignature: (illegible)"
        filled.append(f"{person}\n{born}\n{lives}\n{boxes}\n")
    return "Read all the text in the image.", "\n".join(filled)


def quotations(rng: random.Random) -> Asked:
    """Sentences of a document in the prompt."""
    document = " ".join(prose(rng).split()[:1200])
    sentences = [sentence for sentence in document.split(". ") if 60 < len(sentence) < 400]
    quoted = rng.sample(sentences, min(6, len(sentences)))
    said = [f'{number}. "{sentence}." ({rng.choice(WORDS)})' for number, sentence in enumerate(quoted, 1)]
    return f"{document}\n\nQuote the sentences that matter most.", "These matter most:\n" + "\n".join(said)


def page(rng: random.Random) -> Asked:
    """A page of prose, in which little occurs twice."""
    return "Read all the text in the image.", " ".join(prose(rng).split()[:450])


def noise(rng: random.Random) -> Asked:
    """Words without any order: nothing can be looked up."""
    return "Read all the text in the image.", " ".join(rng.choices(list(words_of_docs()), k=450))


KINDS: dict[str, Callable[[random.Random], Asked]] = {
    "JSON with boxes": boxes,
    "JSON with lines of text": lines_of_text,
    "Markdown table": markdown_table,
    "HTML table": html_table,
    "forms": forms,
    "quotations": quotations,
    "a page of prose": page,
    "random words": noise,
}


def as_json(rows: list[str]) -> str:
    """Rows as Qwen3-VL writes a list."""
    return "```json\n[\n" + ",\n".join(rows) + "\n]\n```"


def prose(rng: random.Random) -> str:
    """Sentences of a page of documentation, from a random one on."""
    parts = (DOCS / rng.choice(PAGES)).read_text("utf-8").split("```")[::2]  # without blocks of code
    sentences = " ".join(" ".join(parts).split()).split(". ")
    start = rng.randrange(len(sentences) // 2)
    return ". ".join(sentences[start:])


def words_of_docs() -> dict[str, None]:
    return dict.fromkeys(" ".join((DOCS / name).read_text("utf-8") for name in PAGES).split())
