"""Divides work into groups that fit: in order, each group as long as it can be.

Knows numbers; nothing about what they count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")


def split_in_order(items: Iterable[Item], fits: Callable[[list[Item]], bool]) -> list[list[Item]]:
    """Groups of consecutive items, each of which fits; an item that does not fit alone is a group by itself."""
    groups: list[list[Item]] = []
    for item in items:
        if groups and fits([*groups[-1], item]):
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


def within(items: Iterable[tuple[Item, int]], limit: int) -> list[list[Item]]:
    """Items in order, as many together as their sizes allow, but at least one."""
    groups = split_in_order(items, lambda group: sum(size for _, size in group) <= limit)
    return [[item for item, _ in group] for group in groups]
