"""Whether a branch allows a value: what becomes of `enum` and `const` beside other keywords."""

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from services.tokenizer.grammar.schema.branch import Array, Branch, Items, Node, Object, Range, Some, Text, is_same
from services.tokenizer.grammar.schema.formats import FORMATS

if TYPE_CHECKING:
    from services.tokenizer.grammar.schema.expand import Expander


def type_of(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case int() | float():
            return "number"
        case list():
            return "array"
        case _:
            return "object"


def admits(expander: "Expander", branch: Branch, value: Any, *, is_wide: bool = False) -> bool:
    """is_wide: patterns read so that more is allowed, in any dialect: to be told False is to know that it is not."""
    kind = type_of(value)
    if kind not in branch.types or any(is_same(value, one) for one in branch.excluded):
        return False
    if branch.values is not None and not any(is_same(value, one) for one in branch.values):
        return False

    def meets(node: Node, inner: Any) -> bool:
        branches = expander.combined(node) if is_wide else expander.node(node)
        return any(admits(expander, one, inner, is_wide=is_wide) for one in branches)

    match kind:
        case "string":
            return _text_admits(branch.text, value, is_wide=is_wide)
        case "number":
            return range_admits(branch.range, Decimal(repr(value)))
        case "object":
            return _object_admits(expander, branch.object, value, meets, is_wide=is_wide)
        case "array":
            return _array_admits(branch.array, value, meets)
    return True


def _text_admits(asked: Text, value: str, *, is_wide: bool) -> bool:
    return (
        asked.least <= len(value)
        and (asked.most is None or len(value) <= asked.most)
        and all(FORMATS.finds(source, value, is_wide=is_wide) for source in asked.patterns)
        and not any(FORMATS.finds(source, value, is_wide=not is_wide) for source in asked.excluded_patterns)
    )


def range_admits(asked: Range, value: Decimal) -> bool:
    if not value.is_finite():
        return False
    if asked.low is not None and (value < asked.low or (value == asked.low and asked.low_is_open)):
        return False
    if asked.high is not None and (value > asked.high or (value == asked.high and asked.high_is_open)):
        return False
    is_integer = value == value.to_integral_value()
    if asked.is_integer is not None and asked.is_integer != is_integer:
        return False
    exact = Fraction(value)  # a remainder of decimals has only so many digits
    return all(exact % Fraction(one) == 0 for one in asked.multiples) and all(
        exact % Fraction(one) != 0 for one in asked.not_multiples
    )


def _object_admits(
    expander: "Expander",
    asked: Object,
    value: dict[str, Any],
    meets: Callable[[Node, Any], bool],
    *,
    is_wide: bool,
) -> bool:
    return (
        asked.required <= value.keys()
        and asked.absent.isdisjoint(value)
        and asked.least <= len(value)
        and (asked.most is None or len(value) <= asked.most)
        and all(meets(asked.names, name) for name in value)
        and all(meets(expander.member_node(asked, name), inner) for name, inner in value.items())
        and all(
            any(is_one(some, name, is_wide=is_wide) and meets(some.node, inner) for name, inner in value.items())
            for some in asked.some
        )
    )


def is_one(some: Some, name: str, *, is_wide: bool = False) -> bool:
    """Whether a property of this name is such a one. is_wide: as for `admits`."""
    return (
        name not in some.names
        and not any(FORMATS.finds(source, name, is_wide=not is_wide) for source in some.excluded_patterns)
        and (some.pattern is None or FORMATS.finds(some.pattern, name, is_wide=is_wide))
    )


def _array_admits(asked: Array, value: list[Any], meets: Callable[[Node, Any], bool]) -> bool:
    if len(value) < asked.least or (asked.most is not None and len(value) > asked.most):
        return False
    if asked.is_unique and any(is_same(one, other) for i, one in enumerate(value) for other in value[:i]):
        return False
    for one in asked.contains:
        count = sum(meets(one.node, inner) for inner in value)
        if count < one.least or (one.most is not None and count > one.most):
            return False
    return all(meets(item_node(asked.items, place), inner) for place, inner in enumerate(value))


def item_node(items: tuple[Items, ...], place: int) -> Node:
    """What the item at a place must meet."""
    node: Node = frozenset()
    for one in items:
        if place < len(one.first):
            node |= one.first[place]
        elif one.rest is not None:
            node |= one.rest
    return node
