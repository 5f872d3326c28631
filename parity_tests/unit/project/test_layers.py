"""Who may import whom, as the table in ARCHITECTURE.md states it, and that no import runs in a circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from parity_tests.fixtures.paths import ROOT

PACKAGES = ("qwen3vl_export", "parity_tests")
ROW = re.compile(r"^\| `([\w.]+)` \| (.*) \|$", re.M)
GROUND_FLOOR = 12
ENTRIES = {"qwen3vl_export", "qwen3vl_export.__main__"}  # the version, and `python -m`


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


@cache
def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    return {module_of(path): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}


def imports(name: str, deferred: bool = True) -> Iterator[str]:
    """The project's modules that a module imports.

    Args:
        deferred: also those that are imported inside a function, or for type checkers only.
    """
    path = modules()[name]
    tree = ast.parse(path.read_text("utf-8"))
    nodes = ast.walk(tree) if deferred else iter(tree.body)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules())
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                target = f"{origin}.{alias.name}"
                yield from (module for module in ([target] if target in modules() else [origin]) if module in modules())


def is_inside(module: str, place: str) -> bool:
    return module == place or module.startswith(f"{place}.")


def wings() -> list[str]:
    return sorted(f"qwen3vl_export.{path.parent.name}" for path in (ROOT / "qwen3vl_export").glob("*/__init__.py"))


def ground_floor() -> list[str]:
    """The modules directly in the package."""
    return sorted(module_of(path) for path in (ROOT / "qwen3vl_export").glob("*.py") if module_of(path) not in ENTRIES)


def rules() -> dict[str, set[str]]:
    """What each place may import beside itself, from the table between the markers in ARCHITECTURE.md.

    A place of the package may also import the ground floor, unless its row names the modules of it that it may.
    """
    table = (ROOT / "ARCHITECTURE.md").read_text("utf-8").split("<!-- layers -->")[1]
    return {
        full_name(place): {full_name(word) for word in re.findall(r"`([\w.]+)`", allowed)}
        for place, allowed in ROW.findall(table)
    }


def full_name(place: str) -> str:
    return place if place.split(".")[0] in PACKAGES else f"qwen3vl_export.{place}"


RULES = rules()


def test_every_wing_and_every_folder_of_tests_has_a_rule() -> None:
    assert set(wings()) <= set(RULES)
    assert {f"parity_tests.{path.parent.name}" for path in (ROOT / "parity_tests").glob("*/__init__.py")} <= set(RULES)


@pytest.mark.parametrize("place", RULES)
def test_a_place_imports_only_what_its_rule_names(place: str) -> None:
    allowed = {place, *RULES[place]}
    if not allowed & set(ground_floor()):
        allowed |= set(ground_floor())
    inside = [module for module in modules() if is_inside(module, place)]
    assert inside
    wrong = {
        f"{module} imports {target}"
        for module in inside
        for target in imports(module)
        if target not in ENTRIES and not any(is_inside(target, name) for name in allowed)
    }
    assert not wrong


def test_the_ground_floor_is_small_and_imports_nothing_above_it() -> None:
    assert len(ground_floor()) <= GROUND_FLOOR, ground_floor()
    above = {(module, target) for module in ground_floor() for target in imports(module)}
    assert {target for _, target in above} <= {*ground_floor(), "qwen3vl_export"}, above


def test_no_import_runs_in_a_circle() -> None:
    """Of modules that load each other; `graphlib` names the circle if there is one."""
    graph = {name: {target for target in imports(name, deferred=False) if target != name} for name in modules()}
    for name, targets in graph.items():  # a package's own parts may read its __init__ only after it has run
        graph[name] = {target for target in targets if not is_inside(name, target)}
    list(TopologicalSorter(graph).static_order())
