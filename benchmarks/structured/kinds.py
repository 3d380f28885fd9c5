"""Schemas and expressions of the kinds that people ask for, as many different ones as wanted.

`schema(seed)` and `expression(seed)` give the same for the same seed. Names, nesting, bounds and keywords vary; all of
them can be met.
"""

import random
from collections.abc import Callable
from typing import Any

Json = Any
Draw = random.Random

NOUNS = (  # noqa: SIM905
    "name title city country status kind author email address price amount currency quantity language version path "
    "color size weight date comment summary reason score rating label owner team region model brand category"
).split()
WORDS = "red green blue small large open closed pending active alpha beta gamma north south draft final".split()  # noqa: SIM905
FORMATS = ["date", "time", "date-time", "email", "uuid", "ipv4", "uri", "hostname", "duration", "x-unknown"]
PATTERNS = [
    "^[A-Z]{3}-[0-9]{4}$",
    "^[a-z]+(-[a-z]+)*$",
    "^v?[0-9]+\\.[0-9]+\\.[0-9]+$",
    "^#[0-9a-fA-F]{6}$",
    "^[^\\s@]+@[^\\s@]+\\.[a-z]{2,6}$",
    "^(\\+[0-9]{1,3} )?[0-9]{3}-[0-9]{4}$",
    "[0-9]",
    "^(?!test)[a-z]{2,12}$",
]


def schema(seed: int) -> Json:
    draw = random.Random(seed)
    return KINDS[seed % len(KINDS)](draw)


def expression(seed: int) -> str:
    """A regex that matches something, in what Python and ECMAScript share."""
    draw = random.Random(seed)
    parts = [_piece(draw, 2) for _ in range(draw.randint(1, 4))]
    return "".join(parts)


def _piece(draw: Draw, depth: int) -> str:
    makers: list[Callable[[], str]] = [
        lambda: draw.choice(WORDS),
        lambda: draw.choice(["[a-z]", "[A-Z]", "[0-9]", "\\d", "\\w", "[^a-f\\n]", "[äöü]"]) + _count(draw),
        lambda: draw.choice([" ", "-", ", ", ": ", "\\.", "\\(", "é", "€"]),
        lambda: "(" + "|".join(draw.sample(WORDS, draw.randint(2, 4))) + ")" + draw.choice(["", "", "?", "{1,3}"]),
    ]
    if depth:
        makers.append(lambda: f"(?:{_piece(draw, depth - 1)}{_piece(draw, depth - 1)}){_count(draw)}")
        makers.append(lambda: f"({_piece(draw, depth - 1)}|{_piece(draw, depth - 1)})")
    return draw.choice(makers)()


def _count(draw: Draw) -> str:
    low = draw.randint(0, 3)
    return draw.choice(["", "+", "{2}", f"{{{low},{low + draw.randint(1, 9)}}}", "?", "*"])


# ------------------------------------------------------------------------------------------------------- values


def text(draw: Draw) -> Json:
    return draw.choice(
        [
            {"type": "string"},
            {"type": "string", "maxLength": draw.randint(4, 60)},
            {"type": "string", "minLength": draw.randint(1, 4), "maxLength": draw.randint(5, 200)},
            {"type": "string", "format": draw.choice(FORMATS)},
            {"type": "string", "pattern": draw.choice(PATTERNS)},
            {"enum": draw.sample(WORDS, draw.randint(2, 6))},
            {"const": draw.choice(WORDS)},
            {"type": "string", "not": {"enum": draw.sample(WORDS, 3)}, "maxLength": 20},
        ]
    )


def number(draw: Draw) -> Json:
    low = draw.randint(-50, 1000)
    return draw.choice(
        [
            {"type": "integer"},
            {"type": "number"},
            {"type": "integer", "minimum": low, "maximum": low + draw.randint(0, 5000)},
            {"type": "number", "minimum": low / 4, "exclusiveMaximum": low / 4 + draw.randint(1, 90)},
            {"type": "integer", "multipleOf": draw.choice([2, 5, 10, 25])},
            {"type": "number", "exclusiveMinimum": 0},
            {"type": "integer", "enum": sorted(draw.sample(range(20), 4))},
        ]
    )


def value(draw: Draw, depth: int) -> Json:
    makers = [
        text,
        text,
        number,
        lambda _: {"type": "boolean"},
        lambda _: {"type": ["string", "null"], "maxLength": 30},
    ]
    if depth:
        makers += [
            lambda draw: record(draw, depth - 1),
            lambda draw: listed(draw, depth - 1),
            lambda draw: mapping(draw, depth - 1),
            lambda draw: {"anyOf": [value(draw, depth - 1), {"type": "null"}]},
        ]
    return draw.choice(makers)(draw)


def record(draw: Draw, depth: int = 1, size: int | None = None) -> Json:
    names = draw.sample(NOUNS, size or draw.randint(1, 6))
    made: Json = {"type": "object", "properties": {name: value(draw, depth) for name in names}}
    made["required"] = draw.choice([names, names[: len(names) // 2], names[-1:]])
    if draw.random() < 0.6:
        made["additionalProperties"] = False
    return made


def listed(draw: Draw, depth: int) -> Json:
    made: Json = {"type": "array", "items": value(draw, depth)}
    most = draw.randint(1, 5)
    return made | draw.choice([{}, {"maxItems": most}, {"minItems": 1, "maxItems": most}, {"minItems": most}])


def mapping(draw: Draw, depth: int) -> Json:
    return {"type": "object"} | draw.choice(
        [
            {"additionalProperties": value(draw, depth), "maxProperties": 3},
            {"patternProperties": {"^[a-z]{2,8}$": value(draw, depth)}, "additionalProperties": False},
            {"propertyNames": {"pattern": "^[a-z]+$"}, "additionalProperties": number(draw), "minProperties": 1},
        ]
    )


# -------------------------------------------------------------------------------------------------------- kinds


def tool_arguments(draw: Draw) -> Json:
    """As a function's parameters: few, described, some optional."""
    made = record(draw, 0)
    for name, inner in made["properties"].items():
        inner["description"] = f"The {name} to look for."
    return made


def extraction(draw: Draw) -> Json:
    """A list of what is found in a text."""
    item = record(draw, 1)
    return {"type": "object", "properties": {"items": listed(draw, 0) | {"items": item}}, "required": ["items"]}


def union(draw: Draw) -> Json:
    """One of several objects, told apart by a property."""
    kinds = draw.sample(WORDS, draw.randint(2, 4))
    options = []
    for kind in kinds:
        one = record(draw, 0, draw.randint(1, 3))
        one["properties"] = {"kind": {"const": kind}} | {k: v for k, v in one["properties"].items() if k != "kind"}
        one["required"] = ["kind", *(name for name in one["required"] if name != "kind")]
        options.append(one)
    return {draw.choice(["oneOf", "anyOf"]): options}


def tree(draw: Draw) -> Json:
    node = record(draw, 0, 2)
    node["properties"]["children"] = {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}
    return {"$ref": "#/$defs/node", "$defs": {"node": node}}


def composed(draw: Draw) -> Json:
    """A base and what an extension asks beyond it."""
    base, more = record(draw, 0, 2), record(draw, 0, 2)
    base.pop("additionalProperties", None)
    more.pop("additionalProperties", None)
    more["properties"] = {f"own_{name}": one for name, one in more["properties"].items()}
    more["required"] = [f"own_{name}" for name in more["required"]]
    return {"allOf": [base, more]} | draw.choice([{}, {"unevaluatedProperties": False}])


def conditional(draw: Draw) -> Json:
    first, second = draw.sample(WORDS, 2)
    name = draw.choice(NOUNS)
    return {
        "type": "object",
        "properties": {"mode": {"enum": [first, second]}, name: {}},
        "required": ["mode", name],
        "additionalProperties": False,
        "if": {"properties": {"mode": {"const": first}}},
        "then": {"properties": {name: text(draw)}},
        "else": {"properties": {name: number(draw)}},
    }


def dependent(draw: Draw) -> Json:
    first, second, third = draw.sample(NOUNS, 3)
    return {
        "type": "object",
        "properties": {first: text(draw), second: number(draw), third: {"type": "boolean"}},
        "dependentRequired": {first: [second]},
        "minProperties": draw.randint(0, 2),
    }


def classes(draw: Draw) -> Json:
    """Labels for a text, each once."""
    labels = draw.sample(WORDS, draw.randint(3, 8))
    return {
        "type": "object",
        "properties": {
            "labels": {"type": "array", "items": {"enum": labels}, "uniqueItems": True, "minItems": 1},
            "confidence": {"type": "number", "minimum": 0, "maximum": 1},
        },
        "required": ["labels", "confidence"],
        "additionalProperties": False,
    }


def pairs(draw: Draw) -> Json:
    return {
        "type": "array",
        "prefixItems": [text(draw), number(draw)],
        "items": draw.choice([False, {"type": "boolean"}]),
        "minItems": 2,
        "maxItems": 4,
    }


def searched(draw: Draw) -> Json:
    return {
        "type": "array",
        "items": {"type": "integer", "minimum": 0, "maximum": 9},
        "contains": {"const": draw.randint(0, 9)},
        "maxItems": draw.randint(2, 6),
    }


def configuration(draw: Draw) -> Json:
    """Nested, mostly optional, some keys by pattern."""
    made = record(draw, 2, 5)
    made["patternProperties"] = {"^x-": text(draw)}
    return made


def anything(draw: Draw) -> Json:
    return value(draw, 2)


KINDS: list[Callable[[Draw], Json]] = [
    record, tool_arguments, extraction, union, tree, composed, conditional, dependent, classes, pairs, searched,
    configuration, anything,
]  # fmt: skip
