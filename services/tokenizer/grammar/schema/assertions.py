"""What a schema's keywords say of a value without alternatives."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from services.tokenizer.grammar.errors import Unenforceable
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
    Text,
    both,
)
from services.tokenizer.grammar.schema.document import Document
from services.tokenizer.grammar.schema.formats import FORMATS
from services.tokenizer.grammar.schema.reader import Reader


def _type(read: Reader) -> Branch:
    names = [read.value] if isinstance(read.value, str) else read.value
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise read.wrong("the name of a type or a list of such")
    unknown = sorted({*names} - ALL_TYPES - {"integer"})
    if unknown:
        raise Unenforceable(
            f"has no type {unknown[0][:50]!r}", pointer=read.document.shown(read.number), keyword="type"
        )
    types = frozenset("number" if name == "integer" else name for name in names)
    is_integer = True if "integer" in names and "number" not in names else None
    return Branch(types=types, range=Range(is_integer=is_integer))


def _enum(read: Reader) -> Branch:
    if not isinstance(read.value, list):
        raise read.wrong("a list")
    return Branch(values=tuple(read.value))


def _low(read: Reader) -> Branch:
    own = read.document.value(read.number)
    is_open = own.get("exclusiveMinimum") is True  # as draft 4 has it
    return Branch(range=Range(low=read.bound(is_upper=False), low_is_open=is_open))


def _high(read: Reader) -> Branch:
    own = read.document.value(read.number)
    return Branch(range=Range(high=read.bound(is_upper=True), high_is_open=own.get("exclusiveMaximum") is True))


def _open_low(read: Reader) -> Branch:
    return (
        EVERYTHING
        if isinstance(read.value, bool)
        else Branch(range=Range(low=read.bound(is_upper=False), low_is_open=True))
    )


def _open_high(read: Reader) -> Branch:
    return (
        EVERYTHING
        if isinstance(read.value, bool)
        else Branch(range=Range(high=read.bound(is_upper=True), high_is_open=True))
    )


def _multiple(read: Reader) -> Branch:
    value = read.number_()
    if value <= 0:
        raise read.wrong("a number above 0")
    return Branch(range=Range(multiples=(value,)))


def _pattern(read: Reader) -> Branch:
    source = read.string()
    try:
        FORMATS.searched(source)
    except Unenforceable as error:
        pointer = read.document.shown(read.number)
        raise Unenforceable(error.message, pointer=pointer, keyword=read.keyword) from None
    return Branch(text=Text(patterns=(source,)))


def _format(read: Reader) -> Branch:
    name = read.string()
    return Branch(text=Text(formats=(name,))) if FORMATS.has(name) else EVERYTHING


def _property_names(read: Reader) -> Branch:
    return Branch(object=Object(names=frozenset([read.document.child(read.number, read.keyword)])))


_ASSERTIONS: dict[str, Callable[[Reader], Branch]] = {
    "type": _type,
    "enum": _enum,
    "const": lambda read: Branch(values=(read.value,)),
    "minLength": lambda read: Branch(text=Text(least=read.count())),
    "maxLength": lambda read: Branch(text=Text(most=read.count())),
    "pattern": _pattern,
    "format": _format,
    "minimum": _low,
    "maximum": _high,
    "exclusiveMinimum": _open_low,
    "exclusiveMaximum": _open_high,
    "multipleOf": _multiple,
    "required": lambda read: Branch(object=Object(required=frozenset(read.names()))),
    "minProperties": lambda read: Branch(object=Object(least=read.count())),
    "maxProperties": lambda read: Branch(object=Object(most=read.count())),
    "propertyNames": _property_names,
    "minItems": lambda read: Branch(array=Array(least=read.count())),
    "maxItems": lambda read: Branch(array=Array(most=read.count())),
    "uniqueItems": lambda read: Branch(array=Array(is_unique=read.flag())),
}

_MEMBERS = frozenset({"properties", "patternProperties", "additionalProperties"})
_ITEMS = frozenset({"prefixItems", "items", "additionalItems"})
_CONTAINS = frozenset({"contains"})
FIRST_WITH_COUNTS = 2019
"""Earlier drafts have no `minContains`: 0 would mean less there."""
FIRST_WITH_PREFIX = 2020
"""Earlier drafts have no `prefixItems`: `items` would mean less beside it."""


def _members(document: Document, number: int) -> Branch:
    value, child = document.value(number), document.child
    named = Reader(document, number, "properties").mapping() if "properties" in value else {}
    patterns = Reader(document, number, "patternProperties").mapping() if "patternProperties" in value else {}
    for source in patterns:
        try:
            FORMATS.search(source)
        except Unenforceable as error:
            pointer = document.shown(number)
            raise Unenforceable(error.message, pointer=pointer, keyword="patternProperties") from None
    has_rest = "additionalProperties" in value
    members = Members(
        named=tuple((name, frozenset([child(number, "properties", name)])) for name in named),
        patterns=tuple((source, frozenset([child(number, "patternProperties", source)])) for source in patterns),
        rest=frozenset([child(number, "additionalProperties")]) if has_rest else None,
    )
    return Branch(object=Object(members=(members,)))


def has_prefix(document: Document, value: dict[str, Any]) -> bool:
    draft = document.draft
    return "prefixItems" in value and (draft is None or draft >= FIRST_WITH_PREFIX)


def _items(document: Document, number: int) -> Branch:
    value, child = document.value(number), document.child
    first: tuple[Node, ...] = ()
    rest: Node | None = None
    is_prefixed = has_prefix(document, value)
    listed = "prefixItems" if is_prefixed else "items" if isinstance(value.get("items"), list) else None
    if listed is not None:
        if not isinstance(value[listed], list):
            raise Reader(document, number, listed).wrong("a list of schemas")
        first = tuple(frozenset([child(number, listed, place)]) for place in range(len(value[listed])))
    behind = "items" if listed == "prefixItems" or listed is None else "additionalItems"
    if behind in value:
        rest = frozenset([child(number, behind)])
    return Branch(array=Array(items=(Items(first=first, rest=rest),)))


def contains(document: Document, number: int) -> Branch:
    value = document.value(number)
    counts = document.draft is None or document.draft >= FIRST_WITH_COUNTS
    least = Reader(document, number, "minContains").count() if counts and "minContains" in value else 1
    most = Reader(document, number, "maxContains").count() if "maxContains" in value else None
    if not least and most is None:
        return EVERYTHING
    node = frozenset([document.child(number, "contains")])
    branch = Branch(array=Array(contains=(Contains(node, least, most),)))
    return branch if most is None or least <= most else replace(branch, types=ALL_TYPES - {"array"})


def asserted(document: Document, number: int, keyword: str) -> Branch:
    """What a keyword of `_ASSERTIONS` says by itself."""
    return _ASSERTIONS[keyword](Reader(document, number, keyword))


def plain(document: Document, number: int) -> Branch:
    """All that a schema says without alternatives. Raises Unenforceable for a value that its keyword cannot have."""
    value = document.value(number)
    branch = EVERYTHING
    for keyword in value:
        if keyword in _ASSERTIONS:
            branch = both(branch, asserted(document, number, keyword))
    for keywords, assemble in ((_MEMBERS, _members), (_ITEMS, _items), (_CONTAINS, contains)):
        if not keywords.isdisjoint(value):
            branch = both(branch, assemble(document, number))
    return branch


def closed_object(asked: Object, rest: Node) -> Object:
    """With `rest` for the properties that none of the members has looked at."""
    evaluations = [members for members in asked.members if members.is_evaluation]
    if any(members.rest is not None for members in evaluations):
        return asked
    named = {name: ANYTHING for members in evaluations for name, _ in members.named}
    patterns = {source: ANYTHING for members in evaluations for source, _ in members.patterns}
    own = Members(named=tuple(named.items()), patterns=tuple(patterns.items()), rest=rest)
    return replace(asked, members=(*asked.members, own))


def closed_array(asked: Array, rest: Node) -> Array:
    evaluations = [items for items in asked.items if items.is_evaluation]
    if any(items.rest is not None for items in evaluations):
        return asked
    longest = max((len(items.first) for items in evaluations), default=0)
    return replace(asked, items=(*asked.items, Items(first=(ANYTHING,) * longest, rest=rest)))
