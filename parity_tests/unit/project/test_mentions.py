"""The documents name only what exists: files, folders, `module.NAME`, `Class.member`, recipe keys, links, headings."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath

import pytest

from parity_tests.fixtures.documents import DOCUMENTS, name_of, recipe_keys
from parity_tests.fixtures.paths import ROOT

TREES = ("qwen3vl_export", "parity_tests", "scripts", "docs", "recipes", ".ci")
# Dotted names that are not this project's: tensors of checkpoints, operators, settings of onnxruntime, npm packages.
FOREIGN = {
    "com.microsoft.MoE",
    "com.microsoft.MultiHeadAttention",
    "com.microsoft.QMoE",
    "lm_head.weight",
    "mlp.experts.3.gate_proj.weight",
    "mlp.experts.down_proj",
    "mlp.experts.gate_up_proj",
    "rotary_emb.inv_freq",
    "optimization.constant_folding_max_output_size_in_bytes",
    "session.dynamic_block_base",
    "session.x64quantprecision",
    "transformers.js",
    "transformers.js_config",
}
# Suffixes of files that artifacts and stores hold and the tree does not.
FILE_ENDINGS = {
    "bin",
    "html",
    "jpg",
    "json",
    "jsonl",
    "md",
    "onnx",
    "onnx_data",
    "onnx_data_1",
    "png",
    "txt",
    "xml",
    "yaml",
    "yml",
}

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
DOTTED = re.compile(r"\w+(\.\w+)+")
PATH = re.compile(r"[\w./*<>{}-]+")
DIAGRAM_PATH = re.compile(r"[\w/.-]*\w/(?![\w<])|[\w/.-]+\.py\b")


@cache
def tree() -> set[str]:
    """Files and folders of the project, relative to the root, without what builds leave there."""
    files = {path.relative_to(ROOT) for top in TREES for path in (ROOT / top).rglob("*") if path.is_file()}
    files |= {path.relative_to(ROOT) for path in ROOT.iterdir() if path.is_file()}
    files = {path for path in files if "__pycache__" not in path.parts}
    return {path.as_posix() for file in files for path in (file, *file.parents)}


@cache
def folders() -> set[str]:
    """The names of the project's folders, wherever they are."""
    return {PurePosixPath(name).name for name in tree() if (ROOT / name).is_dir()}


@cache
def members(file: str) -> dict[str, set[str]]:
    """The top-level names of a module and its classes' members. Imported names count: `__init__.py` re-exports."""
    names: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse((ROOT / file).read_text("utf-8"))):
        if isinstance(node, ast.ClassDef):
            names[node.name] = {name for child in ast.walk(node) for name in defined(child)}
    for node in ast.parse((ROOT / file).read_text("utf-8")).body:
        for name in defined(node):
            names.setdefault(name, set())
    return names


def defined(node: ast.AST) -> Iterator[str]:
    """The names that a statement binds, attributes (`self.name = …`) included."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name for alias in node.names)
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            yield from (part.id for part in ast.walk(target) if isinstance(part, ast.Name))
            if isinstance(target, ast.Attribute):
                yield target.attr


@cache
def modules() -> dict[str, list[str]]:
    """Module files by every suffix of their dotted name: `optimize`, `exporter.optimize`, …"""
    names = defaultdict(list)
    for file in sorted(tree()):
        if file.endswith(".py"):
            parts = PurePosixPath(file.removesuffix("/__init__.py").removesuffix(".py")).parts
            for start in range(len(parts)):
                names[".".join(parts[start:])].append(file)
    return names


@cache
def classes() -> dict[str, set[str]]:
    """The members of every class of the project, inherited ones included; classes of the same name are joined."""
    joined: dict[str, set[str]] = defaultdict(set)
    bases: dict[str, set[str]] = defaultdict(set)
    for file in {file for files in modules().values() for file in files}:
        for name, inside in members(file).items():
            joined[name] |= inside
        for node in ast.walk(ast.parse((ROOT / file).read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases[node.name] |= {base.id for base in node.bases if isinstance(base, ast.Name)}

    def inherited(name: str, below: frozenset[str] = frozenset()) -> set[str]:
        return joined[name].union(*(inherited(base, below | {name}) for base in bases[name] - below))

    return {name: inherited(name) for name in list(joined)}


def is_defined(name: str) -> bool:
    """Whether a dotted name is a module, something in one, or a member of a class of the project."""
    if name in modules():
        return True
    owner, _, last = name.rpartition(".")
    inside = {name for file in modules().get(owner, ()) for name in members(file)}
    if last in inside or any(last in classes().get(name, ()) for name in inside):
        return True
    return last in classes().get(owner.rpartition(".")[2], ())


def is_elsewhere(name: str) -> bool:
    """Whether a dotted name belongs to an installed package, or is the name of a file."""
    first, last = name.split(".")[0], name.rpartition(".")[2]
    installed = first not in modules() and importlib.util.find_spec(first) is not None
    return installed or name in FOREIGN or last in FILE_ENDINGS or is_in_tree(name)


def is_in_tree(path: str) -> bool:
    """Whether a path exists, seen from the root or from any folder; `*` and `<name>` match anything."""
    pattern = re.sub(r"<\w+>|\{\w+\}", "*", path.removeprefix("./").rstrip("/"))
    return any(PurePosixPath(name).match(pattern) for name in tree())


def wrong_mention(word: str) -> str | None:
    """Why a word in backticks is wrong; None if it names something that exists, or is not a name."""
    word = re.sub(r"\(.*\)$", "", word.split(": ")[0])
    if not PATH.fullmatch(word) or word.startswith("/"):
        return None
    first = word.removeprefix("./").split("/")[0]
    if word.endswith(".py") or ("/" in word and first in folders()):
        return None if is_in_tree(word) else "no such file or folder"
    if DOTTED.fullmatch(word) and not re.fullmatch(r"[\d.]+", word):
        known = word in recipe_keys() or is_defined(word) or is_elsewhere(word)
        return None if known else "no module, class or recipe key has it"
    return None


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def wrong_link(document: Path, target: str) -> str | None:
    """Why a link leads nowhere; links to other hosts are not followed."""
    if re.match(r"\w+:", target):
        return None
    path, _, anchor = target.partition("#")
    file = document.parent / path if path else document
    if not file.exists():
        return "no such file"
    if anchor and anchor not in {slug(line) for line in re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.M)}:
        return "no such heading"
    return None


def mentions(text: str) -> Iterator[tuple[int, str]]:
    """Line and text of all inline code, and of every path in a diagram (a fence without a language)."""
    prose = text
    for fence in FENCE.finditer(text):
        if not fence[1]:
            start = text.count("\n", 0, fence.start(2)) + 1
            for number, line in enumerate(fence[2].splitlines(), start):
                yield from ((number, word) for word in DIAGRAM_PATH.findall(line))
        prose = prose.replace(fence[0], "\n" * fence[0].count("\n"), 1)
    for number, line in enumerate(prose.splitlines(), 1):
        yield from ((number, word) for word in CODE.findall(line))


def problems(document: Path, text: str) -> Iterator[str]:
    name = name_of(document)
    for number, word in mentions(text):
        if reason := wrong_mention(word):
            yield f"{name}:{number}: `{word}`: {reason}"
    for number, line in enumerate(text.splitlines(), 1):
        for target in LINK.findall(line):
            if reason := wrong_link(document, target):
                yield f"{name}:{number}: link to {target}: {reason}"


def test_documents_name_only_what_exists() -> None:
    wrong = [line for document in DOCUMENTS for line in problems(document, document.read_text("utf-8"))]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "`weight_checks.READERS`",
        "`packaging_<runtime>.py`",
        "`optimize.NO_SUCH_TABLE`",
        "`exporter/no_such_module.py`",
        "`exporter/no_such_folder/`",
        "`Recipe.no_such_method`",
        "`vision.no_such_key`",
        "[x](docs/no_such_page.md)",
        "[x](docs/recipes.md#no-such-heading)",
        "```\nexporter/no_such_module.py  what it does\n```",
    ],
)
def test_a_wrong_name_is_reported_with_its_line(text: str) -> None:
    (line,) = problems(ROOT / "README.md", f"first line\n\n{text}\n")
    assert re.match(r"README\.md:[34]: ", line)


@pytest.mark.parametrize(
    "text",
    [
        "`optimize.PASSES`, `exporter.optimize.PASSES`, `exporter/optimize.py`, `fleet/`",
        "`Recipe`, `Manifest.from_json`, `recipes/<name>.yaml`, `recipes/qwen3-vl-*.yaml`, `/quit`",
        "`vision.grid: fixed`, `torch.nn`, `parity.json`, `chat_template.jinja`, `1.23.0`, `lm_head.weight`",
        "[x](docs/recipes.md#precision), [y](https://example.org/nowhere)",
    ],
)
def test_names_that_exist_pass(text: str) -> None:
    assert list(problems(ROOT / "README.md", text)) == []
