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
from typing import Any, TypeVar

from services.tokenizer.grammar.dfa import first_text
from services.tokenizer.grammar.errors import Unenforceable
from services.tokenizer.grammar.schema.admits import admits, is_one
from services.tokenizer.grammar.schema.assertions import closed_array, closed_object, plain
from services.tokenizer.grammar.schema.branch import (
    ANYTHING,
    EVERYTHING,
    Branch,
    Members,
    Node,
    Object,
    both,
    key_of,
    place_of,
    silent,
)
from services.tokenizer.grammar.schema.document import Document
from services.tokenizer.grammar.schema.formats import FORMATS
from services.tokenizer.grammar.schema.negations import negated
from services.tokenizer.grammar.schema.reader import Reader, names_of

MAX_BRANCHES = 256
"""Alternatives of a schema. Of more that come of combining, so many are taken, spread over all of them."""

MAX_LISTED = 1024
"""Alternatives that a schema lists itself; all are taken."""

MAX_PAIRS = 2**15
"""Of alternatives that are combined; of more, so many are tried."""

MAX_NEGATIVE_CHOICES = 12
"""Ways in which something does not hold; of more, the first."""

VOID_DEPTH = 4
"""How deep it is looked for a required part that cannot be."""

Way = TypeVar("Way")


class Circular(Unenforceable):
    """A schema must hold for the very value for which it is being looked at."""


class Expander:
    """Alternatives of the subschemas of one document, each computed once."""

    document: Document

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
                        branches = self.product(branches, self.schema(number))
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

    def product(self, ones: list[Branch], others: list[Branch]) -> list[Branch]:
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

    def compatible(self, ones: list[Branch], others: list[Branch]) -> list[Branch]:
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
        branches = [plain(self.document, number)]
        for keyword in value:
            combine = _APPLICATORS.get(keyword)
            if combine is not None:
                branches = self.product(branches, combine(self, number, keyword))
        branches = [done for branch in branches if (done := self._tidy(branch)) is not None]
        return self._unevaluated(number, value, branches)

    def _negative(self, number: int) -> list[Branch]:
        """At least one keyword does not hold."""
        value = self.document.value(number)
        if isinstance(value, bool):
            return [] if value else [EVERYTHING]
        branches: list[Branch] = []
        is_lone = self.document.has_lone_references and "$ref" in value
        for keyword in ["$ref"] if is_lone else value:
            found = negated(self, number, keyword)
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
            branches = [replace(one, object=closed_object(one.object, rest)) for one in branches]
        if "unevaluatedItems" in value:
            rest = frozenset([self.document.child(number, "unevaluatedItems")])
            branches = [replace(one, array=closed_array(one.array, rest)) for one in branches]
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
            branches = self.product(branches, self.schema(child))
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
                        kept = self.product(kept, self.compatible(kept, self.schema(~other)))
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
                branches = self.product(branches, self.schema(self.document.child(number, key)))
            out += branches
        return out

    def dependencies(self, number: int, keyword: str) -> list[Branch]:
        """For each name: it is absent, or what depends on it holds."""
        branches = [EVERYTHING]
        for name, then in self.dependents(number, keyword):
            without = Branch(object=Object(absent=frozenset([name])))
            present = Branch(object=Object(required=frozenset([name]))).only("object")
            branches = self.product(branches, [*self.product([present], then), without])
        return branches

    def dependents(self, number: int, keyword: str) -> Iterator[tuple[str, list[Branch]]]:
        for name, value in Reader(self.document, number, keyword).mapping().items():
            if isinstance(value, list):
                names = names_of(value, self.document.shown(number), keyword)
                yield name, [Branch(object=Object(required=frozenset(names)))]
            else:
                yield name, self.schema(self.document.child(number, keyword, name))


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
