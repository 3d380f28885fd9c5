"""Subschemas as alternatives: a set of schemas that must hold, or not hold, as a list of branches.

Alternatives multiply where schemas are combined; those that no value can meet are dropped on the way. A negation is a
choice of which part does not hold; a part whose negation has no form here is left out of that choice, which makes the
answer's range smaller and never wrong. If nothing is left for that reason, the schema is refused.
"""

import contextlib
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, TypeVar

from services.tokenizer.grammar.dfa import first_text
from services.tokenizer.grammar.errors import Unenforceable
from services.tokenizer.grammar.schema.admits import admits, is_one
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
    key_of,
    place_of,
    silent,
)
from services.tokenizer.grammar.schema.document import Document
from services.tokenizer.grammar.schema.formats import FORMATS

MAX_BRANCHES = 256
"""Alternatives of a schema. Of more that come of combining, so many are taken, spread over all of them."""

MAX_LISTED = 1024
"""Alternatives that a schema lists itself; all are taken."""

MAX_PAIRS = 2**15
"""Of alternatives that are combined; of more, so many are tried."""

MAX_NEGATIVE_CHOICES = 12
MAX_PAIRED = 4
"""Alternatives of a `oneOf` of which two may hold, where it must not hold."""

VOID_DEPTH = 4
"""How deep it is looked for a required part that cannot be."""

LARGEST = 10**120
"""More than the numbers in answers can be, with 15 digits and two of an exponent."""

NUMERIC = Callable[[Any], Branch]
Way = TypeVar("Way")


class Circular(Unenforceable):
    """A schema must hold for the very value for which it is being looked at."""


class Expander:
    """Alternatives of the subschemas of one document, each computed once."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self._schemas: dict[int, list[Branch]] = {}
        self._combined: dict[Node, list[Branch]] = {}
        self._nodes: dict[Node, list[Branch]] = {}
        self._partial: set[int | Node] = set()
        self._open: set[int] = set()
        self._open_nodes: set[Node] = set()
        self.left_out: Unenforceable | None = None
        """Why alternatives may be missing: the first keyword whose negation has no form."""
        self.is_partial = False
        """Whether what is being looked at has more alternatives than are known of it: then it is not void for want of
        any, and may have values in common with others."""

    def node(self, node: Node) -> list[Branch]:
        """The alternatives for a value that must meet all of `node`; none: no value does."""
        if node not in self._nodes:
            named = [done for branch in self.combined(node) for done in self._with_properties(branch)]
            branches = self._some(named, MAX_LISTED)
            self._nodes[node] = [done for branch in branches if (done := self._with_values(branch)) is not None]
        return self._nodes[node]

    def combined(self, node: Node) -> list[Branch]:
        """As `node`, with values that are yet to be looked at and properties that are yet to be named."""
        if node not in self._combined:
            self._open_nodes.add(node)
            try:
                with self._watched(node):
                    branches = [] if any(~number in node for number in node) else [EVERYTHING]
                    for number in sorted(node, key=lambda number: (number < 0, abs(number))):
                        branches = self._product(branches, self.schema(number))
                self._combined[node] = branches
            finally:
                self._open_nodes.discard(node)
        self.is_partial |= node in self._partial
        return self._combined[node]

    def schema(self, number: int) -> list[Branch]:
        """The alternatives of one subschema; `~n` for its negation."""
        if number not in self._schemas:
            place = place_of(number)
            if number in self._open:
                raise Circular(
                    "refers to itself without anything in between",
                    pointer=self.document.shown(place),
                    keyword="$ref",
                )
            self._open.add(number)
            try:
                with self._watched(number):
                    self._schemas[number] = self._positive(place) if number >= 0 else self._negative(place)
            finally:
                self._open.discard(number)
        self.is_partial |= number in self._partial
        return self._schemas[number]

    def is_void(self, node: Node, depth: int = VOID_DEPTH) -> bool:
        """Whether surely no value meets the node."""
        if any(~number in node for number in node):
            return True
        if not depth or node in self._open_nodes or any(number in self._open for number in node):
            return False
        try:
            return not self._may_be(lambda: self.combined(node), depth - 1)
        except Circular:  # it is part of what is being looked at just now
            return False

    @contextlib.contextmanager
    def _watched(self, key: int | Node | None = None) -> Iterator[None]:
        """Within, `is_partial` is about what is looked at there. key: what is noted as partial then, and makes partial
        what it is part of; None: nothing."""
        outer, self.is_partial = self.is_partial, False
        try:
            yield
        finally:
            if key is not None:
                if self.is_partial:
                    self._partial.add(key)
                outer |= self.is_partial
            self.is_partial = outer

    def _may_be(self, find: Callable[[], Iterable[Branch]], depth: int = VOID_DEPTH) -> bool:
        """Whether a value may meet one of the branches, in any dialect of regexes, or one that is not known."""
        with self._watched():
            branches = find()
            return self.is_partial or any(self._has_values(one, depth) for one in branches) or self.is_partial

    def _has_values(self, branch: Branch, depth: int) -> bool:
        tidy = self._tidy(branch, depth)
        return tidy is not None and (tidy.values is None or bool(self._values(tidy, is_wide=True)))

    # ------------------------------------------------------------------------------------------------ combining

    def _product(self, ones: list[Branch], others: list[Branch]) -> list[Branch]:
        if ones == [EVERYTHING]:
            return others
        pairs: Sequence[int] = range(len(ones) * len(others))
        if len(pairs) > MAX_PAIRS:
            self.is_partial = True
            pairs = sorted(random.Random(0).sample(pairs, MAX_PAIRS))  # the same each time
        out: list[Branch] = []
        for pair in pairs:
            branch = self._tidy(both(ones[pair // len(others)], others[pair % len(others)]))
            if branch is not None:
                out.append(branch)
        return self._some(out)

    def _some(self, branches: list[Branch], most: int = MAX_BRANCHES) -> list[Branch]:
        """All of them, or MAX_BRANCHES where there are more than `most`."""
        if len(branches) <= most:
            return branches
        self.is_partial = True
        return [branches[place * len(branches) // MAX_BRANCHES] for place in range(MAX_BRANCHES)]

    def _compatible(self, ones: list[Branch], others: list[Branch]) -> list[Branch]:
        """Few of the ways in which something does not hold: the first of those that go with one of the branches."""
        going = (other for other in others if any(self._tidy(both(one, other)) is not None for one in ones))
        return self.few(list(itertools.islice(going, MAX_NEGATIVE_CHOICES + 1)))

    def few(self, ways: list[Way], most: int = MAX_NEGATIVE_CHOICES) -> list[Way]:
        """The first of the ways in which something does not hold."""
        self.is_partial |= len(ways) > most
        return ways[:most]

    def _tidy(self, branch: Branch, depth: int = VOID_DEPTH) -> Branch | None:
        """Without the types that no value can be of; None when there are none left."""
        types = {one for one in branch.types if self._is_open(one, branch, depth)}
        if branch.values is not None and not branch.values:
            return None
        if not types:
            return None
        return branch if len(types) == len(branch.types) else replace(branch, types=frozenset(types))

    def _is_open(self, name: str, branch: Branch, depth: int) -> bool:
        match name:
            case "string":
                return branch.text.most is None or branch.text.least <= branch.text.most
            case "number":
                low, high = branch.range.low, branch.range.high
                if low is None or high is None:
                    return True
                return low < high or (low == high and not branch.range.low_is_open and not branch.range.high_is_open)
            case "object":
                return self._is_object_open(branch.object, depth)
            case "array":
                array = branch.array
                return array.most is None or max(array.least, *(one.least for one in array.contains), 0) <= array.most
        return True

    def _is_object_open(self, asked: Object, depth: int) -> bool:
        if asked.required & asked.absent:
            return False
        least = max(asked.least, len(asked.required))
        if asked.most is not None and least > asked.most:
            return False
        if not depth:
            return True
        return not any(self.is_void(self.member_node(asked, name), depth) for name in asked.required)

    def member_node(self, asked: Object, name: str) -> Node:
        """What the value of this property must meet, in any dialect of the patterns for names."""
        node: Node = ANYTHING
        for members in asked.members:
            node = node.union(*(inner for key, inner in members.named if key == name))
            is_known = any(key == name for key, _ in members.named)
            for source, inner in members.patterns:
                is_found = FORMATS.finds(source, name)
                if is_found or FORMATS.finds(source, name, is_wide=True):
                    node |= inner
                    is_known |= is_found
                    self.is_partial |= not is_found
            if not is_known and members.rest is not None:
                node |= members.rest
        return node

    def _with_values(self, branch: Branch) -> Branch | None:
        """With those values alone that the branch allows, where it lists values."""
        if branch.values is None:
            return branch
        values = self._values(branch)
        return replace(branch, values=values) if values else None

    def _values(self, branch: Branch, *, is_wide: bool = False) -> tuple[Any, ...]:
        """Of the values that a branch lists, those that it allows. is_wide: in any dialect of regexes."""
        left_out = set(map(key_of, branch.excluded))
        asked = replace(branch, values=None, excluded=())
        return tuple(
            value
            for value in branch.values or ()
            if key_of(value) not in left_out and admits(self, asked, value, is_wide=is_wide)
        )

    def _with_properties(self, branch: Branch) -> list[Branch]:
        """For a property of some kind that must be there, the ways to name it: as one that is known, or anew."""
        if branch.values is not None or not branch.object.some:
            return [branch]
        asked = branch.object
        known = [name for members in asked.members for name, _ in members.named]
        fresh = next(name for name in map("other{}".format, ["", *range(2, len(known) + 3)]) if name not in known)
        names = list(dict.fromkeys([*sorted(asked.required), *known, fresh]))
        branches = [replace(branch, object=replace(asked, some=()))]
        for some in asked.some:
            own = [name for name in names if is_one(some, name)]
            if some.pattern is not None and not own and not (matched := FORMATS.search(some.pattern)).is_empty:
                own = [first_text(matched)]
            facets = [
                Object(members=(Members(named=((name, some.node),), is_evaluation=False),), required=frozenset([name]))
                for name in own[:MAX_NEGATIVE_CHOICES]
            ]
            ways = [both(one, Branch(object=facet)) for one in branches for facet in facets]
            branches = self._some([done for way in ways if (done := self._tidy(way)) is not None])
        return branches

    # -------------------------------------------------------------------------------------------------- schemas

    def _positive(self, number: int) -> list[Branch]:
        value = self.document.value(number)
        if isinstance(value, bool):
            return [EVERYTHING] if value else []
        branches = [self._plain(number, value)]
        for keyword in value:
            combine = _APPLICATORS.get(keyword)
            if combine is not None:
                branches = self._product(branches, combine(self, number, keyword))
        branches = [done for branch in branches if (done := self._tidy(branch)) is not None]
        return self._unevaluated(number, value, branches)

    def _plain(self, number: int, value: dict[str, Any]) -> Branch:
        """All that a schema says without alternatives."""
        branch = EVERYTHING
        for keyword in value:
            assertion = _ASSERTIONS.get(keyword)
            if assertion is not None:
                branch = both(branch, assertion(Reader(self, number, keyword)))
        for keywords, assemble in ((_MEMBERS, _members), (_ITEMS, _items), (_CONTAINS, _contains)):
            if not keywords.isdisjoint(value):
                branch = both(branch, assemble(self, number))
        return branch

    def _negative(self, number: int) -> list[Branch]:
        """At least one keyword does not hold."""
        value = self.document.value(number)
        if isinstance(value, bool):
            return [] if value else [EVERYTHING]
        branches: list[Branch] = []
        is_lone = self.document.has_lone_references and "$ref" in value
        for keyword in ["$ref"] if is_lone else value:
            found = _negated(self, number, keyword)
            if found is None:
                self.is_partial = True
                self.left_out = self.left_out or Unenforceable(
                    "has no form in which its contrary can be enforced",
                    pointer=self.document.shown(number),
                    keyword=keyword,
                )
            else:
                branches += [done for branch in found if (done := self._tidy(branch)) is not None]
        return [silent(branch) for branch in self._some(branches)]

    def _unevaluated(self, number: int, value: dict[str, Any], branches: list[Branch]) -> list[Branch]:
        """What no keyword of this schema or in it has looked at. A branch knows one way for its alternatives to hold;
        if others hold too, more has been looked at than it knows, and what it allows is valid all the more."""
        if {"unevaluatedProperties", "unevaluatedItems"} & value.keys():
            self.is_partial |= len(branches) > 1 or any(one.array.contains for one in branches)
        if "unevaluatedProperties" in value:
            rest = frozenset([self.document.child(number, "unevaluatedProperties")])
            branches = [replace(one, object=_closed_object(one.object, rest)) for one in branches]
        if "unevaluatedItems" in value:
            rest = frozenset([self.document.child(number, "unevaluatedItems")])
            branches = [replace(one, array=_closed_array(one.array, rest)) for one in branches]
        return branches

    # ---------------------------------------------------------------------------------------------- applicators

    def children(self, number: int, keyword: str) -> list[int]:
        value = self.document.value(number)[keyword]
        if not isinstance(value, list) or not value:
            raise Unenforceable("must be a list of schemas", pointer=self.document.shown(number), keyword=keyword)
        if len(value) > MAX_LISTED:
            where = self.document.shown(number)
            raise Unenforceable(f"lists more than {MAX_LISTED} alternatives", pointer=where, keyword=keyword)
        return [self.document.child(number, keyword, place) for place in range(len(value))]

    def all_of(self, number: int, keyword: str) -> list[Branch]:
        branches = [EVERYTHING]
        for child in self.children(number, keyword):
            branches = self._product(branches, self.schema(child))
        return branches

    def any_of(self, number: int, keyword: str) -> list[Branch]:
        branches = [branch for child in self.children(number, keyword) for branch in self.schema(child)]
        return self._some(branches, MAX_LISTED)

    def one_of(self, number: int, keyword: str) -> list[Branch]:
        children = self.children(number, keyword)
        out: list[Branch] = []
        for child in children:
            for branch in self.schema(child):
                kept = [branch]
                for other in children:
                    if other != child and self._overlap(branch, other):
                        kept = self._product(kept, self._compatible(kept, self.schema(~other)))
                out += kept
        return self._some(out, MAX_LISTED)

    def _overlap(self, branch: Branch, other: int) -> bool:
        return self._may_be(lambda: (both(branch, one) for one in self.schema(other)))

    def negation(self, number: int, keyword: str) -> list[Branch]:
        return self.schema(~self.document.child(number, keyword))

    def reference(self, number: int, keyword: str) -> list[Branch]:
        return self.schema(self.document.referred(number, keyword))

    def condition(self, number: int, keyword: str) -> list[Branch]:
        value = self.document.value(number)
        condition = self.document.child(number, "if")
        out: list[Branch] = []
        for sign, key in ((condition, "then"), (~condition, "else")):
            branches = self.few(self.schema(sign)) if sign < 0 else self.schema(sign)
            if key in value:
                branches = self._product(branches, self.schema(self.document.child(number, key)))
            out += branches
        return out

    def dependencies(self, number: int, keyword: str) -> list[Branch]:
        """For each name: it is absent, or what depends on it holds."""
        branches = [EVERYTHING]
        for name, then in self.dependents(number, keyword):
            without = Branch(object=Object(absent=frozenset([name])))
            present = Branch(object=Object(required=frozenset([name]))).only("object")
            branches = self._product(branches, [*self._product([present], then), without])
        return branches

    def dependents(self, number: int, keyword: str) -> Iterator[tuple[str, list[Branch]]]:
        for name, value in Reader(self, number, keyword).mapping().items():
            if isinstance(value, list):
                names = _names(value, self.document.shown(number), keyword)
                yield name, [Branch(object=Object(required=frozenset(names)))]
            else:
                yield name, self.schema(self.document.child(number, keyword, name))


class Reader:
    """A keyword's value, checked for its form."""

    def __init__(self, expander: Expander, number: int, keyword: str) -> None:
        self.expander = expander
        self.number = number
        self.keyword = keyword
        self.value = expander.document.value(number)[keyword]

    def wrong(self, what: str) -> Unenforceable:
        return Unenforceable(f"must be {what}", pointer=self.expander.document.shown(self.number), keyword=self.keyword)

    def count(self) -> int:
        value = self.value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.wrong("a whole number, 0 or more")
        return value

    def number_(self) -> Decimal:
        if not isinstance(self.value, int | float) or isinstance(self.value, bool):
            raise self.wrong("a number")
        value = Decimal(repr(self.value))
        if not value.is_finite() or abs(value.adjusted()) > 300:
            raise self.wrong("a number that is not that large or small")
        return value

    def bound(self, *, is_upper: bool) -> Decimal | None:
        """None: beyond any number that is written."""
        if isinstance(self.value, int | float) and abs(self.value) > LARGEST and (self.value > 0) == is_upper:
            return None
        return self.number_()

    def string(self) -> str:
        if not isinstance(self.value, str):
            raise self.wrong("a string")
        return self.value

    def mapping(self) -> dict[str, Any]:
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        return self.value

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            raise self.wrong("true or false")
        return self.value

    def names(self) -> list[str]:
        return _names(self.value, self.expander.document.shown(self.number), self.keyword)


def _names(value: object, pointer: str, keyword: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise Unenforceable("must be a list of strings", pointer=pointer, keyword=keyword)
    return value


# ------------------------------------------------------------------------------------------------------ assertions


def _type(read: Reader) -> Branch:
    names = [read.value] if isinstance(read.value, str) else read.value
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise read.wrong("the name of a type or a list of such")
    unknown = sorted({*names} - ALL_TYPES - {"integer"})
    if unknown:
        raise Unenforceable(
            f"has no type {unknown[0][:50]!r}", pointer=read.expander.document.shown(read.number), keyword="type"
        )
    types = frozenset("number" if name == "integer" else name for name in names)
    is_integer = True if "integer" in names and "number" not in names else None
    return Branch(types=types, range=Range(is_integer=is_integer))


def _enum(read: Reader) -> Branch:
    if not isinstance(read.value, list):
        raise read.wrong("a list")
    return Branch(values=tuple(read.value))


def _low(read: Reader) -> Branch:
    own = read.expander.document.value(read.number)
    is_open = own.get("exclusiveMinimum") is True  # as draft 4 has it
    return Branch(range=Range(low=read.bound(is_upper=False), low_is_open=is_open))


def _high(read: Reader) -> Branch:
    own = read.expander.document.value(read.number)
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
        pointer = read.expander.document.shown(read.number)
        raise Unenforceable(error.message, pointer=pointer, keyword=read.keyword) from None
    return Branch(text=Text(patterns=(source,)))


def _format(read: Reader) -> Branch:
    name = read.string()
    return Branch(text=Text(formats=(name,))) if FORMATS.has(name) else EVERYTHING


def _property_names(read: Reader) -> Branch:
    return Branch(object=Object(names=frozenset([read.expander.document.child(read.number, read.keyword)])))


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


def _members(expander: Expander, number: int) -> Branch:
    value, child = expander.document.value(number), expander.document.child
    named = Reader(expander, number, "properties").mapping() if "properties" in value else {}
    patterns = Reader(expander, number, "patternProperties").mapping() if "patternProperties" in value else {}
    for source in patterns:
        try:
            FORMATS.search(source)
        except Unenforceable as error:
            pointer = expander.document.shown(number)
            raise Unenforceable(error.message, pointer=pointer, keyword="patternProperties") from None
    has_rest = "additionalProperties" in value
    members = Members(
        named=tuple((name, frozenset([child(number, "properties", name)])) for name in named),
        patterns=tuple((source, frozenset([child(number, "patternProperties", source)])) for source in patterns),
        rest=frozenset([child(number, "additionalProperties")]) if has_rest else None,
    )
    return Branch(object=Object(members=(members,)))


def _has_prefix(expander: Expander, value: dict[str, Any]) -> bool:
    draft = expander.document.draft
    return "prefixItems" in value and (draft is None or draft >= FIRST_WITH_PREFIX)


def _items(expander: Expander, number: int) -> Branch:
    value, child = expander.document.value(number), expander.document.child
    first: tuple[Node, ...] = ()
    rest: Node | None = None
    is_prefixed = _has_prefix(expander, value)
    listed = "prefixItems" if is_prefixed else "items" if isinstance(value.get("items"), list) else None
    if listed is not None:
        if not isinstance(value[listed], list):
            raise Reader(expander, number, listed).wrong("a list of schemas")
        first = tuple(frozenset([child(number, listed, place)]) for place in range(len(value[listed])))
    behind = "items" if listed == "prefixItems" or listed is None else "additionalItems"
    if behind in value:
        rest = frozenset([child(number, behind)])
    return Branch(array=Array(items=(Items(first=first, rest=rest),)))


def _contains(expander: Expander, number: int) -> Branch:
    value = expander.document.value(number)
    counts = expander.document.draft is None or expander.document.draft >= FIRST_WITH_COUNTS
    least = Reader(expander, number, "minContains").count() if counts and "minContains" in value else 1
    most = Reader(expander, number, "maxContains").count() if "maxContains" in value else None
    if not least and most is None:
        return EVERYTHING
    node = frozenset([expander.document.child(number, "contains")])
    branch = Branch(array=Array(contains=(Contains(node, least, most),)))
    return branch if most is None or least <= most else replace(branch, types=ALL_TYPES - {"array"})


def _closed_object(asked: Object, rest: Node) -> Object:
    """With `rest` for the properties that none of the members has looked at."""
    evaluations = [members for members in asked.members if members.is_evaluation]
    if any(members.rest is not None for members in evaluations):
        return asked
    named = {name: ANYTHING for members in evaluations for name, _ in members.named}
    patterns = {source: ANYTHING for members in evaluations for source, _ in members.patterns}
    own = Members(named=tuple(named.items()), patterns=tuple(patterns.items()), rest=rest)
    return replace(asked, members=(*asked.members, own))


def _closed_array(asked: Array, rest: Node) -> Array:
    evaluations = [items for items in asked.items if items.is_evaluation]
    if any(items.rest is not None for items in evaluations):
        return asked
    longest = max((len(items.first) for items in evaluations), default=0)
    return replace(asked, items=(*asked.items, Items(first=(ANYTHING,) * longest, rest=rest)))


_APPLICATORS: dict[str, Callable[[Expander, int, str], list[Branch]]] = {
    "$ref": Expander.reference,
    "$dynamicRef": Expander.reference,
    "$recursiveRef": Expander.reference,
    "allOf": Expander.all_of,
    "anyOf": Expander.any_of,
    "oneOf": Expander.one_of,
    "not": Expander.negation,
    "if": Expander.condition,
    "dependentSchemas": Expander.dependencies,
    "dependentRequired": Expander.dependencies,
    "dependencies": Expander.dependencies,
}


# ------------------------------------------------------------------------------------------------------- negations


def _negated(expander: Expander, number: int, keyword: str) -> list[Branch] | None:
    """The ways in which a keyword does not hold; None: they have no form here."""
    negate = _NEGATIONS.get(keyword)
    if negate is not None:
        return negate(expander, number, keyword)
    return None if keyword in _NO_NEGATION else []


def _not_type(expander: Expander, number: int, keyword: str) -> list[Branch]:
    held = _type(Reader(expander, number, keyword))
    others = Branch(types=ALL_TYPES - held.types)
    if held.range.is_integer:
        return [others, Branch(types=frozenset(["number"]), range=Range(is_integer=False))]
    return [others]


def _not_values(expander: Expander, number: int, keyword: str) -> list[Branch]:
    values = _ASSERTIONS[keyword](Reader(expander, number, keyword)).values or ()
    branches = [Branch(excluded=tuple(value for value in values if not isinstance(value, dict | list)))]
    for value in values:
        if isinstance(value, dict | list):
            branches = expander._product(branches, _not_value(expander, number, value))
    return branches


def _not_value(expander: Expander, number: int, value: dict[str, Any] | list[Any]) -> list[Branch]:
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


def _not_least(make: Callable[[int], list[Branch]]) -> Callable[[Expander, int, str], list[Branch]]:
    def negate(expander: Expander, number: int, keyword: str) -> list[Branch]:
        least = Reader(expander, number, keyword).count()
        return make(least - 1) if least else []

    return negate


def _not_most(make: Callable[[int], list[Branch]]) -> Callable[[Expander, int, str], list[Branch]]:
    return lambda expander, number, keyword: make(Reader(expander, number, keyword).count() + 1)


def _not_bound(expander: Expander, number: int, keyword: str) -> list[Branch]:
    held = _ASSERTIONS[keyword](Reader(expander, number, keyword)).range
    if held.low is not None:
        return _numbers(Range(high=held.low, high_is_open=not held.low_is_open))
    if held.high is not None:
        return _numbers(Range(low=held.high, low_is_open=not held.high_is_open))
    return []


def _not_properties(expander: Expander, number: int, keyword: str) -> list[Branch]:
    out = []
    for name in Reader(expander, number, keyword).mapping():
        wrong = frozenset([~expander.document.child(number, keyword, name)])
        members = Members(named=((name, wrong),))
        out += _objects(Object(members=(members,), required=frozenset([name])))
    return out


def _not_additional(expander: Expander, number: int, keyword: str) -> list[Branch]:
    value = expander.document.value(number)
    names = Reader(expander, number, "properties").mapping() if "properties" in value else {}
    patterns = Reader(expander, number, "patternProperties").mapping() if "patternProperties" in value else {}
    wrong = frozenset([~expander.document.child(number, keyword)])
    return _objects(Object(some=(Some(wrong, frozenset(names), tuple(patterns)),)))


def _not_patterns(expander: Expander, number: int, keyword: str) -> list[Branch]:
    return [
        branch
        for source in Reader(expander, number, keyword).mapping()
        for branch in _objects(
            Object(some=(Some(frozenset([~expander.document.child(number, keyword, source)]), pattern=source),))
        )
    ]


def _not_dependencies(expander: Expander, number: int, keyword: str) -> list[Branch]:
    out = []
    for name, value in Reader(expander, number, keyword).mapping().items():
        present = Object(required=frozenset([name]))
        if isinstance(value, list):
            for missing in _names(value, expander.document.shown(number), keyword):
                out += _objects(replace(present, absent=frozenset([missing])))
        else:
            wrong = expander.schema(~expander.document.child(number, keyword, name))
            out += [both(branch, _objects(present)[0]) for branch in wrong]
    return out


def _not_items(expander: Expander, number: int, keyword: str) -> list[Branch] | None:
    value, child = expander.document.value(number), expander.document.child
    is_prefixed = _has_prefix(expander, value)
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


def _not_contains(expander: Expander, number: int, keyword: str) -> list[Branch]:
    held = _contains(expander, number).array.contains
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


def _not_unique(expander: Expander, number: int, keyword: str) -> list[Branch] | None:
    return None if Reader(expander, number, keyword).flag() else []


def _not_all(expander: Expander, number: int, keyword: str) -> list[Branch]:
    return [branch for child in expander.children(number, keyword) for branch in expander.schema(~child)]


def _not_any(expander: Expander, number: int, keyword: str) -> list[Branch]:
    branches = [EVERYTHING]
    for child in expander.children(number, keyword):
        branches = expander._product(branches, expander._compatible(branches, expander.schema(~child)))
    return branches


def _not_one(expander: Expander, number: int, keyword: str) -> list[Branch]:
    """None holds, or two do."""
    children = expander.few(expander.children(number, keyword), MAX_PAIRED)
    out = _not_any(expander, number, keyword)
    for place, child in enumerate(children):
        for other in children[place + 1 :]:
            out += expander._product(expander.schema(child), expander.schema(other))
    return out


def _not_condition(expander: Expander, number: int, keyword: str) -> list[Branch]:
    value, child = expander.document.value(number), expander.document.child
    condition, out = child(number, "if"), []
    for sign, key in ((condition, "then"), (~condition, "else")):
        if key in value:
            out += expander._product(expander.schema(sign), expander.schema(~child(number, key)))
    return out


_NEGATIONS: dict[str, Callable[[Expander, int, str], list[Branch] | None]] = {
    "type": _not_type,
    "enum": _not_values,
    "const": _not_values,
    "minLength": _not_least(lambda most: _strings(Text(most=most))),
    "maxLength": _not_most(lambda least: _strings(Text(least=least))),
    "pattern": lambda expander, number, keyword: _strings(
        Text(excluded_patterns=_pattern(Reader(expander, number, keyword)).text.patterns)
    ),
    "minimum": _not_bound,
    "maximum": _not_bound,
    "exclusiveMinimum": _not_bound,
    "exclusiveMaximum": _not_bound,
    "multipleOf": lambda expander, number, keyword: _numbers(
        Range(not_multiples=_multiple(Reader(expander, number, keyword)).range.multiples)
    ),
    "required": lambda expander, number, keyword: [
        branch
        for name in Reader(expander, number, keyword).names()
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
    "$ref": lambda expander, number, keyword: expander.schema(~expander.document.referred(number, keyword)),
    "$dynamicRef": lambda expander, number, keyword: expander.schema(~expander.document.referred(number, keyword)),
    "$recursiveRef": lambda expander, number, keyword: expander.schema(~expander.document.referred(number, keyword)),
}
_NO_NEGATION = frozenset({"propertyNames", "unevaluatedProperties", "unevaluatedItems"})
