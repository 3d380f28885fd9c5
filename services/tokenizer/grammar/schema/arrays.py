"""JSON arrays as rules: first items, others, counts of some kind of item, and items that must differ.

Items that must differ come in an order that shows it: the values of an enum in its order, texts by their first
character, numbers by size, objects by a property that each must have.
"""

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from services.tokenizer.grammar.errors import Unenforceable
from services.tokenizer.grammar.limits import MAX_REPEAT
from services.tokenizer.grammar.rules import EMPTY
from services.tokenizer.grammar.schema.admits import item_node, type_of
from services.tokenizer.grammar.schema.branch import Array, Branch, Contains, Node, least_of
from services.tokenizer.grammar.schema.listing import COMMA, Entry, listing

if TYPE_CHECKING:
    from services.tokenizer.grammar.schema.emit import Emitter

MAX_STATES = 3000
MAX_PERMUTED = 5
MAX_DIFFERENT = 512
MAX_MIXED = 3
MAX_PRESENT = 8
MAX_COUNTS = 4
_FIRST_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_FIRST_CLASSES = [
    "^[^0-9A-Za-z]",
    *(f"^{digit}" for digit in range(10)),
    *(f"^[{letter.upper()}{letter}]" for letter in _FIRST_LETTERS),
]

_NUMBER_ENDS = [*range(10), *range(10, 100, 10), *range(100, 1000, 100), *(10**power for power in range(3, 13))]


def expression(emitter: "Emitter", asked: Array) -> str | None:
    """None: there is no such array."""
    asked = _fitted(emitter, asked)
    if asked.most is not None and asked.least > asked.most:
        return None
    if asked.most == 0:
        return '"[]"' if all(one.least == 0 for one in asked.contains) else None
    if asked.is_unique and (asked.most is None or asked.most > 1):
        return _different(emitter, asked)
    if asked.contains:
        return _Counting(emitter, asked).expression()
    first = _first_nodes(asked)
    entries = [Entry(emitter.value(node), place < asked.least) for place, node in enumerate(first[: asked.most])]
    others = emitter.value(item_node(asked.items, len(first))) if _has_rest(emitter, asked, len(first)) else None
    return _in_order(emitter, entries, others, asked)


def _fitted(emitter: "Emitter", asked: Array) -> Array:
    """With bounds that say how many items there can be."""
    if asked.least > MAX_REPEAT:
        raise Unenforceable(f"asks for {asked.least} items, more than an answer can hold", keyword="minItems")
    most = None if asked.most is not None and asked.most >= emitter.max_characters // 2 else asked.most
    if most is not None and most > MAX_REPEAT:
        most = MAX_REPEAT
    first = _first_nodes(asked)
    stop = next((place for place, node in enumerate(first) if not emitter.is_possible(node)), None)
    if stop is None and not _has_rest(emitter, asked, len(first)):
        stop = len(first)
    return replace(asked, most=least_of(most, stop))


def _first_nodes(asked: Array) -> list[Node]:
    return [item_node(asked.items, place) for place in range(max((len(one.first) for one in asked.items), default=0))]


def _has_rest(emitter: "Emitter", asked: Array, num_first: int) -> bool:
    """Whether there may be more than the first items; where a schema lists those and says no more, there are not."""
    said = any(one.rest is not None for one in asked.items)
    wanted = not num_first or asked.least > num_first or bool(asked.contains)
    return (said or wanted) and emitter.is_possible(item_node(asked.items, num_first))


def _in_order(emitter: "Emitter", entries: list[Entry], others: str | None, asked: Array) -> str | None:
    """Optional entries are there from the first on, without gaps."""
    behind = EMPTY
    least, most = max(asked.least - len(entries), 0), None if asked.most is None else asked.most - len(entries)
    if not entries:
        return listing(emitter.rules, [], others, asked.least, asked.most, opening='"["', closing='"]"')
    if others is not None and (most is None or most > 0):
        bounds = f"{{{least},{'' if most is None else most}}}"
        behind = f"({COMMA} {others}){bounds if least or most is not None else '*'}"
    for entry in reversed(entries[1:]):
        body = f"{COMMA} {entry.expression}" + ("" if behind == EMPTY else f" {behind}")
        behind = emitter.rules.add(body if entry.is_required else f"{body} | {EMPTY}")
    inner = f"{entries[0].expression}" + ("" if behind == EMPTY else f" {behind}")
    return f'"[" {inner} "]"' if entries[0].is_required else f'"[" ({inner} | {EMPTY}) "]"'


class _Counting:
    """Arrays in which items of some kind are counted: a state for each number of items and of such items."""

    def __init__(self, emitter: "Emitter", asked: Array) -> None:
        self._emitter = emitter
        self._asked = asked
        self._first = _first_nodes(asked)
        self._cap = max(len(self._first), asked.least) if asked.most is None else asked.most
        self._caps = [one.least if one.most is None else one.most for one in asked.contains]
        self._names: dict[tuple[int, tuple[int, ...]], str] = {}
        states = self._cap + 1
        for cap in self._caps:
            states *= cap + 1
        if states > MAX_STATES or len(asked.contains) > 3:
            raise Unenforceable("counts too many items to be enforced", keyword="contains")

    def expression(self) -> str | None:
        start = (0, (0,) * len(self._caps))
        productive = self._productive(start)
        if start not in productive:
            return None
        rules = self._emitter.rules
        self._names = {state: rules.reserve() for state in productive}
        for state, name in self._names.items():
            parts = [
                f"{COMMA + ' ' if state[0] else ''}{self._emitter.value(node)} {self._names[target]}"
                for node, target in self._steps(state)
                if target in productive
            ]
            rules.define(name, " | ".join([*parts, EMPTY] if self._may_end(state) else parts))
        return f'"[" {self._names[start]} "]"'

    def _steps(self, state: tuple[int, tuple[int, ...]]) -> list[tuple[Node, tuple[int, tuple[int, ...]]]]:
        place, counts = state
        if self._asked.most is not None and place >= self._asked.most:
            return []
        node = item_node(self._asked.items, place)
        choices: list[tuple[Node, tuple[int, ...]]] = [(node, ())]
        for one, count, cap in zip(self._asked.contains, counts, self._caps, strict=True):
            following = []
            for before, so_far in choices:
                if one.most is None or count < cap:
                    following.append((before | one.node, (*so_far, min(count + 1, cap))))
                following.append((before if one.most is None else before | _contrary(one), (*so_far, count)))
            choices = following
        target = min(place + 1, max(self._cap, 1))
        return [(node, (target, after)) for node, after in choices if self._emitter.is_possible(node)]

    def _may_end(self, state: tuple[int, tuple[int, ...]]) -> bool:
        place, counts = state
        return place >= self._asked.least and all(
            count >= one.least for count, one in zip(counts, self._asked.contains, strict=True)
        )

    def _productive(self, start: tuple[int, tuple[int, ...]]) -> set[tuple[int, tuple[int, ...]]]:
        """States that can be reached and from which the array can end."""
        before: dict[Any, set[Any]] = {start: set()}
        queue = [start]
        for state in queue:
            for _, target in self._steps(state):
                if target not in before:
                    before[target] = set()
                    queue.append(target)
                before[target].add(state)
        good = {state for state in before if self._may_end(state)}
        stack = list(good)
        while stack:
            for state in before[stack.pop()]:
                if state not in good:
                    good.add(state)
                    stack.append(state)
        return good


def _contrary(one: Contains) -> Node:
    [number] = one.node
    return frozenset([~number])


def _different(emitter: "Emitter", asked: Array) -> str | None:
    first = _first_nodes(asked)
    if asked.contains:
        return _at_most_one(emitter, asked)
    if first:
        pairs = ((one, other) for place, one in enumerate(first) for other in first[:place])
        if asked.least <= len(first) and all(emitter.expander.is_void(one | other) for one, other in pairs):
            return expression(emitter, replace(asked, is_unique=False, most=least_of(asked.most, len(first))))
        return _at_most_one(emitter, asked)
    classes = different(emitter, item_node(asked.items, 0))
    if len(classes) < 2:
        return _at_most_one(emitter, asked)
    is_exhaustive = all(map(emitter.is_single, classes))
    if asked.least > len(classes) and not is_exhaustive:
        raise _not_different()
    entries = [emitter.value(node) for node in classes]
    if is_exhaustive and len(entries) <= MAX_PERMUTED:
        return _permuted(emitter, entries, asked)
    return listing(
        emitter.rules,
        [Entry(entry, False) for entry in entries],
        None,
        asked.least,
        least_of(asked.most, len(entries)),
        opening='"["',
        closing='"]"',
    )


def _at_most_one(emitter: "Emitter", asked: Array) -> str | None:
    if asked.least > 1 or any(one.least > 1 for one in asked.contains):
        raise _not_different()
    return expression(emitter, replace(asked, is_unique=False, most=1))


def _not_different() -> Unenforceable:
    return Unenforceable(
        "asks for items that differ, of a kind for which that cannot be enforced", keyword="uniqueItems"
    )


def _permuted(emitter: "Emitter", entries: list[str], asked: Array) -> str | None:
    """Any order; a rule for each set of items that are still to come."""
    most = least_of(asked.most, len(entries)) or 0
    if asked.least > most:
        return None
    names: dict[frozenset[int], str] = {}

    def rule(used: frozenset[int]) -> str:
        if used not in names:
            parts = [EMPTY] if len(used) >= asked.least else []
            if len(used) < most:
                comma = f"{COMMA} " if used else ""
                parts += [
                    f"{comma}{entry} {rule(used | {place})}" for place, entry in enumerate(entries) if place not in used
                ]
            names[used] = emitter.rules.add(" | ".join(parts))
        return names[used]

    return f'"[" {rule(frozenset())} "]"'


def different(emitter: "Emitter", node: Node, depth: int = 3) -> list[Node]:
    """Nodes within `node` that have no value in common. Possible ones only, and not all that there could be."""
    branches = emitter.expander.node(node)
    if branches and all(branch.values is not None for branch in branches):
        listed: dict[str, Any] = {}
        for branch in branches:
            for value in branch.values or ():
                listed.setdefault(emitter.spelled(value), value)
        schemas: list[Any] = [{"const": value} for value in listed.values()]
    else:
        types = frozenset[str]().union(*map(_types, branches))
        if len(types) > MAX_MIXED:  # anything at all: texts will do
            types &= {"string"}
        schemas = [schema for name in sorted(types) for schema in _classes(emitter, node, name, depth)]
    nodes = [node | {emitter.made(schema, node)} for schema in schemas[:MAX_DIFFERENT]] if node else []
    return [one for one in nodes if emitter.is_possible(one)]


def _types(branch: Branch) -> frozenset[str]:
    return branch.types if branch.values is None else frozenset(map(type_of, branch.values))


def _classes(emitter: "Emitter", node: Node, name: str, depth: int) -> list[Any]:
    """Schemas of one type that exclude each other."""
    match name:
        case "boolean":
            return [{"const": False}, {"const": True}]
        case "null":
            return [{"const": None}]
        case "string":
            return [{"type": "string", "pattern": source} for source in _FIRST_CLASSES]
        case "number":
            return [
                {"type": "integer", "minimum": low, "exclusiveMaximum": high}
                for low, high in itertools.pairwise(_NUMBER_ENDS)
            ]
        case "object":
            return _object_classes(emitter, node, depth)
    return _array_classes(emitter, node, depth)


def _object_classes(emitter: "Emitter", node: Node, depth: int) -> list[Any]:
    """By the property that all must have and that can be the most different values, or by the first property that is
    there."""
    objects = [branch.object for branch in emitter.expander.node(node) if "object" in branch.types]
    named = list(dict.fromkeys(name for one in objects for members in one.members for name, _ in members.named))
    best = _by_first_property(named[:MAX_PRESENT])
    if not depth:
        return best
    required = frozenset.intersection(*(one.required for one in objects)) if objects else frozenset()
    for key in sorted(required):
        inner = frozenset[int]().union(*(emitter.expander.member_node(one, key) for one in objects))
        if not inner or len(objects) > 1:
            own: list[Any] = [{"type": "string", "pattern": source} for source in _FIRST_CLASSES]
        else:
            types = frozenset[str]().union(*(branch.types for branch in emitter.expander.node(inner)))
            values = [value for branch in emitter.expander.node(inner) for value in branch.values or ()]
            own = [{"const": value} for value in {emitter.spelled(value): value for value in values}.values()]
            own = own or [schema for name in sorted(types) for schema in _classes(emitter, inner, name, depth - 1)]
        if len(own) > len(best):
            best = [{"type": "object", "required": [key], "properties": {key: schema}} for schema in own]
    return best


def _by_first_property(names: list[str]) -> list[Any]:
    """Objects that have none of the names, and for each name those that have it and none of those before it."""
    without: dict[str, Any] = {}
    classes: list[Any] = []
    for name in names:
        classes.append({"type": "object", "required": [name], "properties": dict(without)})
        without[name] = False
    return [*classes, {"type": "object", "properties": without}]


def _array_classes(emitter: "Emitter", node: Node, depth: int) -> list[Any]:
    """By the first item, or by the number of items."""
    arrays = [branch.array for branch in emitter.expander.node(node) if "array" in branch.types]
    inner = frozenset[int]().union(*(item_node(one.items, 0) for one in arrays))
    own: list[Any] = []
    if depth and inner:
        types = frozenset[str]().union(*(branch.types for branch in emitter.expander.node(inner)))
        if len(types) <= MAX_MIXED:
            own = [schema for name in sorted(types) for schema in _classes(emitter, inner, name, depth - 1)]
    empty: Any = {"type": "array", "maxItems": 0}
    if len(own) > 1:
        return [empty, *({"type": "array", "minItems": 1, "prefixItems": [schema]} for schema in own)]
    counted = [{"type": "array", "minItems": count, "maxItems": count} for count in range(1, MAX_COUNTS)]
    return [empty, *counted, {"type": "array", "minItems": MAX_COUNTS}]
