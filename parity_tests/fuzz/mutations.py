"""Random changes of bytes, text and JSON values, each a function of a `Random` and so repeatable.

Knows what tends to break readers: extreme numbers, wrong types, paths that lead out, deep nesting, cut files. Knows
nothing about formats.
"""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Sequence
from random import Random
from typing import Any

Json = Any
NUMBERS: tuple[Json, ...] = (
    *(0, 1, -1, 2, 3, 7, 100, 255, 65535, 100_000, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64),
    *(10**12, 10**30, 10**400, -(10**12), 0.5, -0.5, 1e-320, 1e308, -1e308, float("nan"), float("inf"), -0.0),
)
SECRET = "outside/secret.json"  # beside the box in which an input is tried
PATHS = (
    *(
        f"../{SECRET}",
        f"../../{SECRET}",
        f"../../../{SECRET}",
        f"onnx/../../../{SECRET}",
        "..",
        ".",
        "/",
        "/etc/passwd",
    ),
    *("/dev/zero", "/dev/stdin", "/proc/self/mem", "manifest.json", "onnx", "onnx/", "./onnx/../onnx", "C:\\x", "~"),
    *(f"file://../{SECRET}", "a" * 300, "a/" * 3000, "x\0y", "CON"),
)
TEXTS = (
    *(
        "",
        " ",
        "x",
        "0",
        "1e9",
        "null",
        "true",
        "\0",
        "\n",
        "a\nb",
        "\ud800",
        "\u202e",
        "\x1b[2J",
        "{}",
        "[]",
        "ü",
        "\U0001d518",
    ),
    *("x" * 100_000, "<|im_start|>", "<|image_pad|>", "%s%n", "{0.__class__}", "{{ 1/0 }}"),
)
CONTAINERS: tuple[Json, ...] = ([], [[]], {}, [None], {"": None}, [0, 0], [[0, 0], [0]], {"a": {"b": []}}, [{}] * 3)
DEPTHS = (50, 1000, 100_000)


def hostile_value(random: Random) -> Json:
    """A JSON value that no one expects where it is put."""
    kinds: tuple[Sequence[Json], ...] = (NUMBERS, TEXTS, PATHS, CONTAINERS, (None, True, False))
    return copy.deepcopy(random.choice(random.choice(kinds)))


def places(value: Json) -> list[tuple[Any, Any]]:
    """Every container inside a JSON value with a key or index of it."""
    result: list[tuple[Any, Any]] = []
    pending = [value]
    while pending:
        container = pending.pop()
        items = container.items() if isinstance(container, dict) else enumerate(container)
        for key, item in list(items):
            result.append((container, key))
            if isinstance(item, dict | list):
                pending.append(item)
    return result


def mutate_value(random: Random, value: Json) -> Json:
    """A changed copy of a JSON value: one to four of its places are replaced, removed, renamed, moved or wrapped."""
    value = json.loads(json.dumps(value))
    if random.random() < 0.02:
        return hostile_value(random)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        all_places = places(value)
        if not all_places:
            return hostile_value(random)
        container, key = random.choice(all_places)
        change = random.randrange(10)
        if change < 5:
            container[key] = hostile_value(random)
        elif change == 5:
            del container[key]
        elif change == 6 and isinstance(container, dict):
            container[str(random.choice((*TEXTS, *PATHS)))] = container.pop(key)
        elif change == 7:
            other, at = random.choice(all_places)
            container[key] = json.loads(json.dumps(other[at])) if at in other or isinstance(other, list) else None
        elif change == 8:
            container[key] = random.choice(([container[key]], {str(key): container[key]}, str(container[key])[:1000]))
        elif isinstance(container, list):
            item = hostile_value(random)
            container[key:key] = [copy.deepcopy(item) for _ in range(random.choice((1, 2, 1000)))]
        else:
            container[str(hostile_value(random))[:1000]] = hostile_value(random)
    return value


def dump(random: Random, value: Json) -> bytes:
    """A JSON value as a file; now and then one that is not valid JSON, or nested too deeply for a parser."""
    text = json.dumps(value)
    if random.random() < 0.05:
        depth = random.choice(DEPTHS)
        opening, closing = random.choice((("[", "]"), ('{"a":', "}")))
        nested = opening * depth + "0" + closing * depth
        at = [index for index, character in enumerate(text) if character == ":"]
        cut = random.choice(at) + 1 if at else 0
        text = text[:cut] + nested + ("," + text[cut:].partition(",")[2] if cut else "")
    data = text.encode("utf-8", "surrogatepass")
    return mutate_bytes(random, data) if random.random() < 0.05 else data


def mutate_text(random: Random, text: str, words: Sequence[str]) -> str:
    """Changed text: lines repeated, removed, moved or indented; words replaced by, or put between, the given ones."""
    lines = text.split("\n")
    for _ in range(random.choice((1, 1, 2, 3, 6))):
        at, change = random.randrange(len(lines)), random.randrange(8)
        line = lines[at]
        cut = random.randrange(len(line) + 1)
        if change == 0:
            lines.insert(at, line)
        elif change == 1 and len(lines) > 1:
            del lines[at]
        elif change == 2:
            lines.insert(random.randrange(len(lines)), lines.pop(at))
        elif change == 3:
            lines[at] = random.choice(("  ", "\t", " ", "- ", "    ")) + line
        elif change == 4:
            lines[at] = line[:cut] + random.choice(words) + line[cut:]
        elif change == 5:
            lines[at] = line.partition(":")[0] + ": " + random.choice(words)
        elif change == 6:
            lines.insert(at, random.choice(words))
        else:
            lines[at] = line[:cut] + line[cut + random.choice((1, 2, 5)) :]
    return "\n".join(lines)


def mutate_bytes(random: Random, data: bytes, splice: bytes = b"") -> bytes:
    """Changed bytes: bits flipped, numbers made extreme, pieces cut, repeated, moved, or taken from `splice`."""
    result = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        if not result:
            break
        head = min(len(result), 64)
        at = random.randrange(head if random.random() < 0.5 else len(result))
        length = random.choice((1, 2, 4, 8, 64, 1024))
        change = random.randrange(8)
        if change < 2:
            result[at] ^= 1 << random.randrange(8)
        elif change < 4:
            form, limit = random.choice((("B", 1), ("H", 2), ("I", 4), ("Q", 8)))
            number = random.choice((0, 1, 2**7, 2 ** (8 * limit - 1), 2 ** (8 * limit) - 1, 40_000, 12_000))
            packed = struct.pack(random.choice("<>") + form, number % 2 ** (8 * limit))
            result[at : at + limit] = packed
        elif change == 4:
            del result[at : at + length]
        elif change == 5:
            result[at:at] = result[at : at + length] * random.choice((1, 1, 3))
        elif change == 6:
            begin = random.randrange(len(splice)) if splice else 0
            result[at : at + length] = splice[begin : begin + length] or random.randbytes(length)
        else:
            del result[at:]
    return bytes(result)
