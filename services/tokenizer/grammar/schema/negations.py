"""The ways in which a keyword does not hold, as branches.

A keyword whose negation has no form here has None for its ways: whoever asks leaves it out of a choice.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from services.tokenizer.grammar.schema.assertions import asserted, contains, has_prefix
from services.tokenizer.grammar.schema.branch import (
    ALL_TYPES,
    ANYTHING,
    EVERYTHING,
    Array,
    Branch,
    Contains,
    Items,
    Members,
    Node,
    Object,
    Range,
    Some,
    Text,
    both,
)
from services.tokenizer.grammar.schema.reader import Reader, names_of

if TYPE_CHECKING:
    from services.tokenizer.grammar.schema.expand import Expander

Negation = Callable[["Expander", int, str], list[Branch] | None]
"""Of the subschema of a number, the ways in which a keyword of it does not hold."""

MAX_PAIRED = 4
"""Alternatives of a `oneOf` of which two may hold, where it must not hold."""


def negated(expander: "Expander", number: int, keyword: str) -> list[Branch] | None:
    """The ways in which a keyword does not hold; None: they have no form here."""
    negate = _NEGATIONS.get(keyword)
    if negate is not None:
        return negate(expander, number, keyword)
    return None if keyword in _NO_NEGATION else []


def _not_type(expander: "Expander", number: int, keyword: str) -> list[Branch]:
    held = asserted(expander.document, number, keyword)
    others = Branch(types=ALL_TYPES - held.types)
    if held.range.is_integer:
        return [others, Branch(types=frozenset(["number"]), range=Range(is_integer=False))]
    return [others]


def _not_values(expander: "Expander", number: int, keyword: str) -> list[Branch]:
    values = asserted(expander.document, number, keyword).values or ()
    branches = [Branch(excluded=tuple(value for value in values if not isinstance(value, dict | list)))]
    for value in values:
        if isinstance(value, dict | list):
            branches = expander.product(branches, _not_value(expander, number, value))
    return branches


def _not_value(expander: "Expander", number: int, value: dict[str, Any] | list[Any]) -> list[Branch]:
    """Another type, another number of members, or a member that is another."""

    def other(inner: Any) -> Node:
        return frozenset([~expander.document.made({"const": inner}, number)])

    if isinstance(value, dict):
        out = [Branch(types=ALL_TYPES - {"object"}), *_objects(Object(least=len(value) + 1))]
        for name, inner in expander.few(list(value.items())):
            out += _objects(Object(absent=frozenset([name])))
            members = Members(named=((name, other(inner)),))
            out += _objects(Object(members=(members,), required=frozenset([name])))
        return out
    out = [Branch(types=ALL_TYPES - {"array"}), *_arrays(Array(least=len(value) + 1))]
    if value:
        out += _arrays(Array(most=len(value) - 1))
    for place, inner in enumerate(expander.few(value)):
        first = (*[ANYTHING] * place, other(inner))
        out += _arrays(Array(items=(Items(first=first),), least=place + 1))
    return out


def _strings(text: Text) -> list[Branch]:
    return [Branch(types=frozenset(["string"]), text=text)]


def _numbers(asked: Range) -> list[Branch]:
    return [Branch(types=frozenset(["number"]), range=asked)]


def _objects(asked: Object) -> list[Branch]:
    return [Branch(types=frozenset(["object"]), object=asked)]


def _arrays(asked: Array) -> list[Branch]:
    return [Branch(types=frozenset(["array"]), array=asked)]


def _not_least(make: Callable[[int], list[Branch]]) -> Negation:
    def negate(expander: "Expander", number: int, keyword: str) -> list[Branch]:
        least = Reader(expander.document, number, keyword).count()
        return make(least - 1) if least else []

    return negate


def _not_most(make: Callable[[int], list[Branch]]) -> Negation:
    return lambda expander, number, keyword: make(Reader(expander.document, number, keyword).count() + 1)


def _not_bound(expander: "Expander", number: int, keyword: str) -> list[Branch]:
    held = asserted(expander.document, number, keyword).range
    if held.low is not None:
        return _numbers(Range(high=held.low, high_is_open=not held.low_is_open))
    if held.high is not None:
        return _numbers(Range(low=held.high, low_is_open=not held.high_is_open))
    return []


def _not_properties(expander: "Expander", number: int, keyword: str) -> list[Branch]:
    out = []
    for name in Reader(expander.document, number, keyword).mapping():
        wrong = frozenset([~expander.document.child(number, keyword, name)])
        members = Members(named=((name, wrong),))
        out += _objects(Object(members=(members,), required=frozenset([name])))
    return out


def _not_additional(expander: "Expander", number: int, keyword: str) -> list[Branch]:
    value = expander.document.value(number)
    names = Reader(expander.document, number, "properties").mapping() if "properties" in value else {}
    patterns = Reader(expander.document, number, "patternProperties").mapping() if "patternProperties" in value else {}
    wrong = frozenset([~expander.document.child(number, keyword)])
    return _objects(Object(some=(Some(wrong, frozenset(names), tuple(patterns)),)))


def _not_patterns(expander: "Expander", number: int, keyword: str) -> list[Branch]:
    return [
        branch
        for source in Reader(expander.document, number, keyword).mapping()
        for branch in _objects(
            Object(some=(Some(frozenset([~expander.document.child(number, keyword, source)]), pattern=source),))
        )
    ]


def _not_dependencies(expander: "Expander", number: int, keyword: str) -> list[Branch]:
    out = []
    for name, value in Reader(expander.document, number, keyword).mapping().items():
        present = Object(required=frozenset([name]))
        if isinstance(value, list):
            for missing in names_of(value, expander.document.shown(number), keyword):
                out += _objects(replace(present, absent=frozenset([missing])))
        else:
            wrong = expander.schema(~expander.document.child(number, keyword, name))
            out += [both(branch, _objects(present)[0]) for branch in wrong]
    return out


def _not_items(expander: "Expander", number: int, keyword: str) -> list[Branch] | None:
    value, child = expander.document.value(number), expander.document.child
    is_prefixed = has_prefix(expander.document, value)
    if keyword == "prefixItems" and not is_prefixed:
        return []
    if isinstance(value[keyword], list):
        out = []
        for place in range(len(value[keyword])):
            first = (*[ANYTHING] * place, frozenset([~child(number, keyword, place)]))
            out += _arrays(Array(items=(Items(first=first),), least=place + 1))
        return out
    if is_prefixed or keyword == "additionalItems":
        return None
    return _arrays(Array(contains=(Contains(frozenset([~child(number, keyword)])),)))


def _not_contains(expander: "Expander", number: int, keyword: str) -> list[Branch]:
    held = contains(expander.document, number).array.contains
    if not held:
        return []
    [one] = held
    out = []
    if one.least == 1:
        wrong = frozenset([~expander.document.child(number, keyword)])
        out += _arrays(Array(items=(Items(rest=wrong),)))
    elif one.least > 1:
        out += _arrays(Array(contains=(Contains(one.node, 0, one.least - 1),)))
    if one.most is not None:
        out += _arrays(Array(contains=(Contains(one.node, one.most + 1),)))
    return out


def _not_unique(expander: "Expander", number: int, keyword: str) -> list[Branch] | None:
    return None if Reader(expander.document, number, keyword).flag() else []


def _not_all(expander: "Expander", number: int, keyword: str) -> list[Branch]:
    return [branch for child in expander.children(number, keyword) for branch in expander.schema(~child)]


def _not_any(expander: "Expander", number: int, keyword: str) -> list[Branch]:
    branches = [EVERYTHING]
    for child in expander.children(number, keyword):
        branches = expander.product(branches, expander.compatible(branches, expander.schema(~child)))
    return branches


def _not_one(expander: "Expander", number: int, keyword: str) -> list[Branch]:
    """None holds, or two do."""
    children = expander.few(expander.children(number, keyword), MAX_PAIRED)
    out = _not_any(expander, number, keyword)
    for place, child in enumerate(children):
        for other in children[place + 1 :]:
            out += expander.product(expander.schema(child), expander.schema(other))
    return out


def _not_condition(expander: "Expander", number: int, keyword: str) -> list[Branch]:
    value, child = expander.document.value(number), expander.document.child
    condition, out = child(number, "if"), []
    for sign, key in ((condition, "then"), (~condition, "else")):
        if key in value:
            out += expander.product(expander.schema(sign), expander.schema(~child(number, key)))
    return out


def _not_reference(expander: "Expander", number: int, keyword: str) -> list[Branch]:
    return expander.schema(~expander.document.referred(number, keyword))


_NEGATIONS: dict[str, Negation] = {
    "type": _not_type,
    "enum": _not_values,
    "const": _not_values,
    "minLength": _not_least(lambda most: _strings(Text(most=most))),
    "maxLength": _not_most(lambda least: _strings(Text(least=least))),
    "pattern": lambda expander, number, keyword: _strings(
        Text(excluded_patterns=asserted(expander.document, number, keyword).text.patterns)
    ),
    "minimum": _not_bound,
    "maximum": _not_bound,
    "exclusiveMinimum": _not_bound,
    "exclusiveMaximum": _not_bound,
    "multipleOf": lambda expander, number, keyword: _numbers(
        Range(not_multiples=asserted(expander.document, number, keyword).range.multiples)
    ),
    "required": lambda expander, number, keyword: [
        branch
        for name in Reader(expander.document, number, keyword).names()
        for branch in _objects(Object(absent=frozenset([name])))
    ],
    "minProperties": _not_least(lambda most: _objects(Object(most=most))),
    "maxProperties": _not_most(lambda least: _objects(Object(least=least))),
    "properties": _not_properties,
    "patternProperties": _not_patterns,
    "additionalProperties": _not_additional,
    "dependentRequired": _not_dependencies,
    "dependentSchemas": _not_dependencies,
    "dependencies": _not_dependencies,
    "minItems": _not_least(lambda most: _arrays(Array(most=most))),
    "maxItems": _not_most(lambda least: _arrays(Array(least=least))),
    "items": _not_items,
    "prefixItems": _not_items,
    "additionalItems": _not_items,
    "contains": _not_contains,
    "uniqueItems": _not_unique,
    "allOf": _not_all,
    "anyOf": _not_any,
    "oneOf": _not_one,
    "not": lambda expander, number, keyword: expander.schema(expander.document.child(number, keyword)),
    "if": _not_condition,
    "$ref": _not_reference,
    "$dynamicRef": _not_reference,
    "$recursiveRef": _not_reference,
}
_NO_NEGATION = frozenset({"propertyNames", "unevaluatedProperties", "unevaluatedItems"})
