"""A schema as grammar rules: one rule for each set of subschemas that must hold together, and so recursion as it is."""

import json
from typing import Any

from services.tokenizer.grammar.errors import Unenforceable
from services.tokenizer.grammar.rules import Rules, alternatives, literal, one_of_texts
from services.tokenizer.grammar.schema import arrays, numbers, objects
from services.tokenizer.grammar.schema.admits import item_node, type_of
from services.tokenizer.grammar.schema.branch import (
    ALL_TYPES,
    ANYTHING,
    TYPES,
    Array,
    Branch,
    Node,
    Object,
    Range,
    Text,
    place_of,
)
from services.tokenizer.grammar.schema.document import Document, Json, written
from services.tokenizer.grammar.schema.expand import Expander
from services.tokenizer.grammar.schema.texts import Texts

MAX_NODES = 5000


def emit(schema: Json, rules: Rules, max_characters: int) -> str:
    """The name of a rule for the JSON texts that the schema allows. Raises Unenforceable."""
    document = Document(schema)
    emitter = Emitter(Expander(document), rules, max_characters)
    root = frozenset([document.root])
    if not emitter.is_possible(root):
        raise emitter.expander.left_out or Unenforceable("allows no value at all", pointer="")
    return emitter.value(root)


class Emitter:
    """Rules for nodes, each made once."""

    def __init__(self, expander: Expander, rules: Rules, max_characters: int) -> None:
        self.expander = expander
        self.rules = rules
        self.max_characters = max_characters
        self.texts = Texts(rules, max_characters)
        self._names: dict[Node, str] = {}
        self._possible: set[Node] = set()

    def value(self, node: Node) -> str:
        """The name of the rule for the values that meet the node, of which there must be one."""
        if node in self._names:
            return self._names[node]
        if len(self._names) >= MAX_NODES:
            raise Unenforceable(f"combines into more than {MAX_NODES} schemas")
        known = len(self._names)
        name = self._names[node] = self.rules.reserve()
        branches = self.expander.node(node)
        try:
            parts = [part for branch in branches for part in self._parts(branch)]
            if not parts:
                raise self.expander.left_out or Unenforceable("allows no value that could be written")
        except Unenforceable as error:
            for made in list(self._names)[known:]:  # they may refer to this one
                del self._names[made]
            raise self._located(error, node) from None
        self.rules.define(name, " | ".join(dict.fromkeys(parts)))
        return name

    def is_possible(self, node: Node) -> bool:
        """Whether a value meets the node: one of finite size."""
        return self._is_possible(node, frozenset())

    def is_single(self, node: Node) -> bool:
        """Whether exactly one value meets the node."""
        branches = self.expander.node(node)
        return len(branches) == 1 and branches[0].values is not None and len(branches[0].values) == 1

    def made(self, schema: Json, near: Node) -> int:
        """The number of a schema that stands for a part of a node."""
        return self.expander.document.made(schema, min(map(place_of, near)))

    @staticmethod
    def spelled(value: Json) -> str:
        """How a value is written, the same for equal ones."""
        return json.dumps(_whole(value), sort_keys=True)

    def _is_possible(self, node: Node, path: frozenset[Node]) -> bool:
        if node in self._possible:
            return True
        if node in path:
            return False
        inner = path | {node}
        if any(self._is_branch_possible(branch, inner) for branch in self.expander.node(node)):
            self._possible.add(node)
            return True
        return False

    def _is_branch_possible(self, branch: Branch, path: frozenset[Node]) -> bool:
        if branch.values is not None:
            return True
        if any(self._is_scalar_possible(name, branch) for name in branch.types - {"object", "array"}):
            return True
        if "object" in branch.types:
            members = [self.expander.member_node(branch.object, name) for name in branch.object.required]
            if all(self._is_possible(node, path) for node in members):
                return True
        if "array" in branch.types:
            least = min(branch.array.least, 1 + max((len(one.first) for one in branch.array.items), default=0))
            nodes = [item_node(branch.array.items, place) for place in range(least)]
            behind = item_node(branch.array.items, least)
            for one in branch.array.contains:
                if one.least and all(not self._is_possible(node | one.node, path) for node in [*nodes, behind]):
                    return False
            if all(self._is_possible(node, path) for node in nodes):
                return True
        return False

    def _is_scalar_possible(self, name: str, branch: Branch) -> bool:
        left_out = [value for value in branch.excluded if type_of(value) == name]
        match name:
            case "null":
                return not left_out
            case "boolean":
                return len({*left_out}) < 2
            case "string":
                return self.texts.is_open(branch.text, left_out)
        return numbers.is_open(branch.range, left_out)

    def _parts(self, branch: Branch) -> list[str]:
        if branch.values is not None:
            return [one_of_texts(map(written, branch.values), self.rules)]
        meant = _meant(branch)
        for types in (meant, branch.types - meant):
            parts = [self._of_type(name, branch) for name in TYPES if name in types]
            if any(part is not None for part in parts):
                break
        return [part for part in parts if part is not None]

    def _of_type(self, name: str, branch: Branch) -> str | None:
        left_out = [value for value in branch.excluded if type_of(value) == name]
        match name:
            case "null":
                return None if left_out else '"null"'
            case "boolean":
                kept = [word for word, value in (("true", True), ("false", False)) if value not in left_out]
                return alternatives(map(literal, kept)) if kept else None
            case "string":
                return self.texts.expression(branch.text, left_out)
            case "number":
                return numbers.expression(branch.range, left_out, self.rules)
        if name == "object":
            return objects.expression(self, branch.object)
        return arrays.expression(self, branch.array)

    def _located(self, error: Unenforceable, node: Node) -> Unenforceable:
        if error.pointer is not None or node == ANYTHING:
            return error
        pointer = self.expander.document.shown(min(map(place_of, node)))
        return Unenforceable(error.message, pointer=pointer, keyword=error.keyword)


def _meant(branch: Branch) -> frozenset[str]:
    """The types that a schema without a type speaks of, if it speaks of any: `properties` means an object."""
    if branch.types != ALL_TYPES:
        return branch.types
    said = {"string": branch.text, "number": branch.range, "object": branch.object, "array": branch.array}
    plain = {"string": Text(), "number": Range(), "object": Object(), "array": Array()}
    return frozenset(name for name, facet in said.items() if facet != plain[name]) or branch.types


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(one) for one in value]
    if isinstance(value, dict):
        return {key: _whole(one) for key, one in value.items()}
    return value
