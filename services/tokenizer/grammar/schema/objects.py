"""JSON objects as rules: known properties in the order in which the schema names them, then others.

Where a schema names properties and does not say that there may be others, there are none.
"""

from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

from services.tokenizer.grammar import charset
from services.tokenizer.grammar.automaton import automaton
from services.tokenizer.grammar.dfa import Dfa, intersected, subtracted, values
from services.tokenizer.grammar.errors import Unenforceable
from services.tokenizer.grammar.pattern import ANYTHING as ANY_TEXT
from services.tokenizer.grammar.pattern import One, alt, literal, repeat, seq
from services.tokenizer.grammar.rules import JSON_PLAIN, alternatives
from services.tokenizer.grammar.rules import literal as text_literal
from services.tokenizer.grammar.schema.admits import admits
from services.tokenizer.grammar.schema.branch import ANYTHING, Node, Object
from services.tokenizer.grammar.schema.document import written
from services.tokenizer.grammar.schema.formats import FORMATS
from services.tokenizer.grammar.schema.listing import Entry, listing

if TYPE_CHECKING:
    from services.tokenizer.grammar.schema.emit import Emitter

MAX_PATTERNS = 64
MAX_CLASSES = 64
MAX_LISTED_NAMES = 64
MAX_NAME_BEGINNINGS = 40
"""Of the names that other names must not be: for each beginning the whole vocabulary is gone through. Where they have
more, the others differ from all of them within their first characters."""

_FREE_NAME = automaton(repeat(One(JSON_PLAIN), 1, None))


@dataclass(frozen=True, slots=True)
class NameClass:
    """Names of properties that the schema does not list, and what their values must meet."""

    names: Dfa
    node: Node


def expression(emitter: "Emitter", asked: Object) -> str | None:
    """None: there is no such object."""
    known = _known(emitter, asked)
    if known is None:
        return None
    free = []
    for one in _free(emitter, asked, known):
        listed = values(one.names, MAX_LISTED_NAMES)
        if listed is None:
            free.append(one)
        else:
            known |= dict.fromkeys(listed, (one.node, False))
    entries = [
        Entry(f"{_name(name)} {emitter.value(node)}", is_required) for name, (node, is_required) in known.items()
    ]
    others = _others(emitter, free)
    missing = asked.least - len(known)
    if missing > 1:  # names that are there twice count once
        if not free:
            return None
        entries = [Entry(entry.expression, True) for entry in entries] + _different(emitter, free, missing)
        missing = 0
    return listing(
        emitter.rules, entries, others, asked.least, asked.most, opening='"{"', closing='"}"', may_repeat=True
    )


def _name(name: str) -> str:
    return text_literal(written(name) + ": ")


def _known(emitter: "Emitter", asked: Object) -> dict[str, tuple[Node, bool]] | None:
    """Name -> (what its value must meet, whether it must be there), in order; None: one must be that cannot."""
    named = (name for members in asked.members for name, _ in members.named)
    known = {}
    for name in dict.fromkeys([*named, *sorted(asked.required)]):
        node = emitter.expander.member_node(asked, name)
        is_open = name not in asked.absent and _is_name(emitter, asked, name) and emitter.is_possible(node)
        if is_open:
            known[name] = (node, name in asked.required)
        elif name in asked.required:
            return None
    return known


def _is_name(emitter: "Emitter", asked: Object, name: str) -> bool:
    return any(admits(emitter.expander, branch, name) for branch in emitter.expander.node(asked.names))


def _free(emitter: "Emitter", asked: Object, known: dict[str, tuple[Node, bool]]) -> list[NameClass]:
    """Classes of names that have nothing in common, with different schemas for their values."""
    sources = list(dict.fromkeys(source for members in asked.members for source, _ in members.patterns))
    says = any(members.rest is not None for members in asked.members)
    if known and not says and not sources and asked.least <= len(known):
        return []
    if len(sources) > MAX_PATTERNS:
        raise Unenforceable(f"has more than {MAX_PATTERNS} patterns for names", keyword="patternProperties")
    mentioned = {name for members in asked.members for name, _ in members.named} | asked.absent | asked.required
    names = _without(_allowed_names(emitter, asked), mentioned)
    classes: list[tuple[Dfa, tuple[str, ...]]] = [(names, ())]
    for source in sources:
        found, others = FORMATS.search(source), FORMATS.excluded(source)
        split = [(intersected(own, found), (*matched, source)) for own, matched in classes]
        split += [(subtracted(own, others), matched) for own, matched in classes]
        classes = [(own, matched) for own, matched in split if not own.is_empty]
        if len(classes) > MAX_CLASSES:
            raise Unenforceable(f"has names of more than {MAX_CLASSES} kinds", keyword="patternProperties")
    return [
        NameClass(own, node)
        for own, matched in classes
        if (matched or says or not known or asked.least > len(known))
        and emitter.is_possible(node := _node(asked, matched))
    ]


def _node(asked: Object, matched: tuple[str, ...]) -> Node:
    node: Node = ANYTHING
    for members in asked.members:
        own = [inner for source, inner in members.patterns if source in matched]
        node = node.union(*own)
        if not own and members.rest is not None:
            node |= members.rest
    return node


def _allowed_names(emitter: "Emitter", asked: Object) -> Dfa:
    """What `propertyNames` leaves, without characters that would have to be escaped."""
    if asked.names == ANYTHING:
        return _FREE_NAME
    parts = []
    for branch in emitter.expander.node(asked.names):
        if branch.values is not None:
            parts.append(automaton(alt(literal(value) for value in branch.values if isinstance(value, str))))
        elif "string" in branch.types:
            dfa = emitter.texts.automaton(branch.text)
            left_out = [automaton(literal(value)) for value in branch.excluded if isinstance(value, str)]
            parts.append(intersected(reduce(subtracted, left_out, dfa), automaton(repeat(One(JSON_PLAIN), 0, None))))
    everything = automaton(ANY_TEXT)
    return subtracted(everything, reduce(subtracted, parts, everything))  # all of them together


def _without(names: Dfa, mentioned: set[str]) -> Dfa:
    """The names that are none of these, or of many such names those that differ from them early."""
    if not mentioned:
        return names
    following: dict[str, set[str]] = {"": {name[0] for name in mentioned if name}}
    for length in range(1, max(map(len, mentioned)) + 1):
        longer = {name[:length] for name in mentioned if len(name) >= length}
        if len(following) + len(longer) > MAX_NAME_BEGINNINGS:
            break
        for beginning in longer:
            following[beginning] = {name[length] for name in mentioned if name[:length] == beginning != name}
    others = [literal(beginning) for beginning in following.keys() - mentioned]
    for beginning, chars in following.items():
        different = charset.complement(charset.of("".join(chars)))
        others.append(seq([literal(beginning), One(different), ANY_TEXT]))
    return intersected(names, automaton(alt(others)))


def _others(emitter: "Emitter", free: list[NameClass]) -> str | None:
    if not free:
        return None
    return emitter.rules.add(alternatives(_free_entry(emitter, one.names, one.node) for one in free))


def _free_entry(emitter: "Emitter", names: Dfa, node: Node) -> str:
    return f'{emitter.texts.key(names)} ": " {emitter.value(node)}'


def _different(emitter: "Emitter", free: list[NameClass], count: int) -> list[Entry]:
    """So many entries whose names begin with different letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    if count > len(letters):
        raise Unenforceable(f"asks for {count} properties without saying which", keyword="minProperties")
    entries = []
    for place in range(count):
        own = letters[place * len(letters) // count : (place + 1) * len(letters) // count]
        beginning = automaton(seq([One(charset.of(own + own.upper())), ANY_TEXT]))
        for one in free:
            names = intersected(one.names, beginning)
            if not names.is_empty:
                entries.append(Entry(emitter.rules.add(_free_entry(emitter, names, one.node)), True))
                break
        else:
            raise Unenforceable(f"asks for {count} properties without saying which", keyword="minProperties")
    return entries
