"""What one alternative of a schema asks of a value, type by type. A value must be of one of the types and meet what is
asked of that type; what is asked of other types does not touch it.

A *node* is a set of subschemas by number that must all hold: positive `n`, or not hold: `~n`.
"""

from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

Node = frozenset[int]
ANYTHING: Node = frozenset()

TYPES = ("object", "array", "string", "number", "boolean", "null")
ALL_TYPES = frozenset(TYPES)

Number = Decimal


@dataclass(frozen=True, slots=True)
class Text:
    """patterns, excluded_patterns: sources of regexes to be found, or not to be found. formats: known ones; they are
    annotations, and narrow the text where they can."""

    least: int = 0
    most: int | None = None
    patterns: tuple[str, ...] = ()
    excluded_patterns: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Range:
    """Of numbers. is_integer None: either. multiples, not_multiples: of these."""

    low: Number | None = None
    high: Number | None = None
    low_is_open: bool = False
    high_is_open: bool = False
    is_integer: bool | None = None
    multiples: tuple[Number, ...] = ()
    not_multiples: tuple[Number, ...] = ()


@dataclass(frozen=True, slots=True)
class Members:
    """One schema's say on the values of an object's properties. rest None: it says nothing of those that it neither
    names nor has a pattern for. is_evaluation: what it looks at counts as looked at for `unevaluatedProperties`; not
    so within a negation."""

    named: tuple[tuple[str, Node], ...] = ()
    patterns: tuple[tuple[str, Node], ...] = ()
    rest: Node | None = None
    is_evaluation: bool = True


@dataclass(frozen=True, slots=True)
class Some:
    """That there is a property whose name is none of some, and matches none of the excluded patterns but the one that
    is required, if any; and what its value must meet."""

    node: Node
    names: frozenset[str] = frozenset()
    excluded_patterns: tuple[str, ...] = ()
    pattern: str | None = None


@dataclass(frozen=True, slots=True)
class Object:
    """names: what every name must be, as a string. absent: names that must not be there. some: each of these."""

    members: tuple[Members, ...] = ()
    required: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()
    least: int = 0
    most: int | None = None
    names: Node = ANYTHING
    some: tuple[Some, ...] = ()


@dataclass(frozen=True, slots=True)
class Items:
    """One schema's say on an array's items. rest None: it says nothing of those behind the first ones. is_evaluation:
    as for `Members`."""

    first: tuple[Node, ...] = ()
    rest: Node | None = None
    is_evaluation: bool = True


@dataclass(frozen=True, slots=True)
class Contains:
    node: Node
    least: int = 1
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Array:
    items: tuple[Items, ...] = ()
    least: int = 0
    most: int | None = None
    is_unique: bool = False
    contains: tuple[Contains, ...] = ()


@dataclass(frozen=True, slots=True)
class Branch:
    """values: the only ones, if not None; excluded: none of these."""

    types: frozenset[str] = ALL_TYPES
    values: tuple[Any, ...] | None = None
    excluded: tuple[Any, ...] = ()
    text: Text = field(default_factory=Text)
    range: Range = field(default_factory=Range)
    object: Object = field(default_factory=Object)
    array: Array = field(default_factory=Array)

    def only(self, *types: str) -> "Branch":
        return replace(self, types=self.types.intersection(types))


EVERYTHING = Branch()


def place_of(number: int) -> int:
    """The number of the subschema that `n` or `~n` is about."""
    return number if number >= 0 else ~number


def silent(branch: Branch) -> Branch:
    """The branch as part of a negation, where nothing counts as looked at."""
    if not branch.object.members and not branch.array.items:
        return branch
    members = tuple(replace(one, is_evaluation=False) for one in branch.object.members)
    items = tuple(replace(one, is_evaluation=False) for one in branch.array.items)
    return replace(branch, object=replace(branch.object, members=members), array=replace(branch.array, items=items))


def both(one: Branch, other: Branch) -> Branch:
    """What asks all that either asks. The result may be one that no value meets."""
    if one is EVERYTHING:
        return other
    if other is EVERYTHING:
        return one
    return Branch(
        types=one.types & other.types,
        values=_common(one.values, other.values),
        excluded=one.excluded + other.excluded,
        text=_both_texts(one.text, other.text),
        range=_both_ranges(one.range, other.range),
        object=_both_objects(one.object, other.object),
        array=_both_arrays(one.array, other.array),
    )


def is_same(one: object, other: object) -> bool:
    """Equality of JSON values: 1 and 1.0 are equal, 1 and true are not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_same, one, other))
    return one == other


def key_of(value: Any) -> Any:
    """Equal for values that are the same, and hashable."""
    match value:
        case bool():
            return ("boolean", value)
        case list():
            return ("array", *map(key_of, value))
        case dict():
            return ("object", frozenset((name, key_of(inner)) for name, inner in value.items()))
    return value


def _common(one: tuple[Any, ...] | None, other: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    if one is None or other is None:
        return other if one is None else one
    keys = set(map(key_of, other))
    return tuple(value for value in one if key_of(value) in keys)


def least_of(one: int | None, other: int | None) -> int | None:
    """The smaller of two upper bounds, either of which may not be there."""
    return other if one is None else one if other is None else min(one, other)


def _both_texts(one: Text, other: Text) -> Text:
    return Text(
        least=max(one.least, other.least),
        most=least_of(one.most, other.most),
        patterns=_joined(one.patterns, other.patterns),
        excluded_patterns=_joined(one.excluded_patterns, other.excluded_patterns),
        formats=_joined(one.formats, other.formats),
    )


def _both_ranges(one: Range, other: Range) -> Range:
    low, low_is_open = max(
        (one.low, one.low_is_open),
        (other.low, other.low_is_open),
        key=lambda end: (end[0] is not None, end[0] or 0, end[1]),
    )
    high, high_is_open = min(
        (one.high, one.high_is_open),
        (other.high, other.high_is_open),
        key=lambda end: (end[0] is None, end[0] or 0, not end[1]),
    )
    integer = one.is_integer if other.is_integer is None else other.is_integer
    if None not in (one.is_integer, other.is_integer) and one.is_integer != other.is_integer:
        low, high = Number(1), Number(0)
    return Range(
        low=low,
        high=high,
        low_is_open=low_is_open,
        high_is_open=high_is_open,
        is_integer=integer,
        multiples=_joined(one.multiples, other.multiples),
        not_multiples=_joined(one.not_multiples, other.not_multiples),
    )


def _both_objects(one: Object, other: Object) -> Object:
    return Object(
        members=_joined(one.members, other.members),
        required=one.required | other.required,
        absent=one.absent | other.absent,
        least=max(one.least, other.least),
        most=least_of(one.most, other.most),
        names=one.names | other.names,
        some=_joined(one.some, other.some),
    )


def _both_arrays(one: Array, other: Array) -> Array:
    return Array(
        items=_joined(one.items, other.items),
        least=max(one.least, other.least),
        most=least_of(one.most, other.most),
        is_unique=one.is_unique or other.is_unique,
        contains=_joined(one.contains, other.contains),
    )


def _joined(one: tuple[Any, ...], other: tuple[Any, ...]) -> tuple[Any, ...]:
    """Both, each once."""
    return one if one == other or not other else other if not one else tuple(dict.fromkeys(one + other))
