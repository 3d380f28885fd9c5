"""Schemas at random, of all keywords and their combinations, small enough that many allow some value."""

# ruff: noqa: E501 - a line for each keyword

import random
from typing import Any

Json = Any
NAMES = ["a", "b", "kind", "x-y"]
PATTERNS = ["^[a-z]+$", "b", "^.{2,4}$", "[0-9]$", "^(foo|bar)?$", "^x-"]
VALUES: list[Json] = [1, 2, 2.5, "a", "bar", "foo", True, None, [], [1], {}, {"a": 1}, {"kind": "a", "b": 2}, "ab1"]


def schema(draw: random.Random, depth: int = 2) -> Json:
    """One schema; at depth 0 without schemas inside."""
    if draw.random() < 0.06:
        return draw.random() < 0.8
    keywords = draw.sample(sorted(MAKERS), draw.choice([1, 1, 2, 2, 3, 4]))
    made: dict[str, Json] = {}
    if draw.random() < 0.6:
        made["type"] = _type(draw)
    for keyword in keywords:
        made |= MAKERS[keyword](draw, depth)
    return made


def document(draw: random.Random) -> Json:
    """A schema that may refer to others and to itself."""
    root = schema(draw, 3)
    if isinstance(root, dict):
        root["$defs"] = {"one": schema(draw, 1), "two": schema(draw, 2)}
    return root


def _type(draw: random.Random) -> Json:
    names = ["object", "array", "string", "integer", "number", "boolean", "null"]
    return draw.choice(names) if draw.random() < 0.7 else draw.sample(names, draw.choice([2, 3]))


def _inner(draw: random.Random, depth: int) -> Json:
    if depth <= 0:
        return draw.choice([True, {"type": _type(draw)}, {"const": draw.choice(VALUES)}, {"enum": VALUES[:6]}])
    if draw.random() < 0.1:
        return {"$ref": draw.choice(["#/$defs/one", "#/$defs/two", "#"])}
    return schema(draw, depth - 1)


def _several(draw: random.Random, depth: int) -> list[Json]:
    return [_inner(draw, depth - 1) for _ in range(draw.choice([1, 2, 2, 3]))]


def _named(draw: random.Random, depth: int) -> dict[str, Json]:
    return {name: _inner(draw, depth - 1) for name in draw.sample(NAMES, draw.choice([1, 2, 3]))}


def _bounds(low: str, high: str) -> Any:
    def make(draw: random.Random, depth: int) -> Json:
        first, last = sorted(draw.choices(range(5), k=2))
        return draw.choice([{low: first}, {high: last}, {low: first, high: last}])

    return make


MAKERS: dict[str, Any] = {
    "length": _bounds("minLength", "maxLength"),
    "pattern": lambda draw, depth: {"pattern": draw.choice(PATTERNS)},
    "format": lambda draw, depth: {"format": draw.choice(["date", "email", "uuid", "unknown"])},
    "range": lambda draw, depth: draw.choice(
        [
            {"minimum": draw.randint(-20, 20)},
            {"maximum": draw.choice([10, 7.25, -3])},
            {"exclusiveMinimum": 0.5, "exclusiveMaximum": draw.choice([2, 100])},
        ]
    ),
    "multipleOf": lambda draw, depth: {"multipleOf": draw.choice([2, 3, 0.5, 0.01, 250])},
    "enum": lambda draw, depth: {"enum": draw.sample(VALUES, 4)},
    "const": lambda draw, depth: {"const": draw.choice(VALUES)},
    "properties": lambda draw, depth: {"properties": _named(draw, depth)},
    "patternProperties": lambda draw, depth: {"patternProperties": {draw.choice(PATTERNS): _inner(draw, depth - 1)}},
    "additionalProperties": lambda draw, depth: {"additionalProperties": _inner(draw, depth - 1)},
    "propertyNames": lambda draw, depth: {"propertyNames": _inner(draw, 0) if draw.random() < 0.3 else {"maxLength": 4}},
    "required": lambda draw, depth: {"required": draw.sample(NAMES, draw.choice([1, 2]))},
    "count": _bounds("minProperties", "maxProperties"),
    "dependentRequired": lambda draw, depth: {"dependentRequired": {draw.choice(NAMES): [draw.choice(NAMES)]}},
    "dependentSchemas": lambda draw, depth: {"dependentSchemas": {draw.choice(NAMES): _inner(draw, depth - 1)}},
    "items": lambda draw, depth: {"items": _inner(draw, depth - 1)},
    "prefixItems": lambda draw, depth: {"prefixItems": _several(draw, depth)},
    "length_of_array": _bounds("minItems", "maxItems"),
    "contains": lambda draw, depth: {"contains": _inner(draw, depth - 1)},
    "contains_counted": lambda draw, depth: {"contains": _inner(draw, 0)} | _bounds("minContains", "maxContains")(draw, 0),
    "uniqueItems": lambda draw, depth: {"uniqueItems": True},
    "anyOf": lambda draw, depth: {"anyOf": _several(draw, depth)},
    "oneOf": lambda draw, depth: {"oneOf": _several(draw, depth)},
    "allOf": lambda draw, depth: {"allOf": _several(draw, depth)},
    "not": lambda draw, depth: {"not": _inner(draw, depth - 1)},
    "if": lambda draw, depth: {
        "if": _inner(draw, depth - 1),
        "then": _inner(draw, depth - 1),
        "else": _inner(draw, depth - 1),
    },
    "unevaluatedProperties": lambda draw, depth: {"unevaluatedProperties": draw.choice([False, {"type": "integer"}])},
    "unevaluatedItems": lambda draw, depth: {"unevaluatedItems": draw.choice([False, {"type": "integer"}])},
}  # fmt: skip
