"""docs/parity.schema.json: the JSON schema of `parity.json`, made from the types in `qwen3vl_export.evidence`.

    python -m parity_tests.harness.evidence.schema > docs/parity.schema.json

Knows annotations and JSON schema (https://json-schema.org/draft/2020-12); nothing about what the values mean.
"""

from __future__ import annotations

import json
import types
from collections.abc import Sequence
from dataclasses import is_dataclass
from inspect import cleandoc
from typing import Any, Literal, Union, get_args, get_origin

from qwen3vl_export.console import write
from qwen3vl_export.evidence import Evidence
from qwen3vl_export.json_form import WORDS, AtLeast, Later, Matching, OneOf, Words, constraints, hints

Schema = dict[str, Any]
NAMES = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
HEAD = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "parity.json"}


def schema_text() -> str:
    """The schema as it is published."""
    definitions: dict[str, Schema] = {}
    schema = object_schema(Evidence, definitions)
    values = {**HEAD, **schema, "$defs": dict(sorted(definitions.items()))}
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def object_schema(kind: Any, definitions: dict[str, Schema]) -> Schema:
    """The schema of a dataclass; those of the dataclasses inside it are added to `definitions`."""
    return {
        "description": cleandoc(kind.__doc__),
        "type": "object",
        "properties": {name: schema_of(annotation, definitions) for name, annotation in hints(kind).items()},
        "required": [name for name, annotation in hints(kind).items() if Later() not in constraints(annotation)[1]],
        "additionalProperties": False,
    }


def schema_of(annotation: Any, definitions: dict[str, Schema]) -> Schema:
    """The schema of an annotation with its constraints."""
    kind, notes = constraints(annotation)
    schema = plain_schema(kind, definitions)
    for note in notes:
        match note:
            case OneOf(values):
                schema |= {"enum": list(values)}
            case AtLeast(minimum):
                schema |= {"minimum": minimum}
            case Matching(pattern):
                schema |= {"pattern": pattern}
            case Words():
                schema = {"anyOf": [schema, {"type": "string", "enum": list(WORDS)}]}
            case str(text):
                schema |= {"description": text}
    return schema


def plain_schema(kind: Any, definitions: dict[str, Schema]) -> Schema:
    """The schema of an annotation without constraints."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        name = getattr(kind, "__name__", "")
        if name not in definitions:
            definitions[name] = object_schema(kind, definitions)
        return {"$ref": f"#/$defs/{name}"}
    if origin in (Union, types.UnionType):
        return {"anyOf": [option for member in arguments for option in options(member, definitions)]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": schema_of(arguments[0], definitions)}
    if origin is not None:
        return {"type": "object", "additionalProperties": schema_of(arguments[1], definitions)}
    return {"type": NAMES[kind]}


def options(member: Any, definitions: dict[str, Schema]) -> Sequence[Schema]:
    """The schemas of a member of a union, without a union inside the union."""
    schema = schema_of(member, definitions)
    return schema["anyOf"] if set(schema) == {"anyOf"} else [schema]


if __name__ == "__main__":
    write(schema_text())
