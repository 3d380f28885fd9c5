r"""Lookahead at the start of an expression and lookbehind at its end: what else the same text must be, or must not be.

`^(?!tmp)(?=.*[0-9])[a-z0-9]+(?<!x)$` is `^[a-z0-9]+$` for texts in which `^(?:.*[0-9])` is found and neither `^(?:tmp)`
nor `(?:x)$` is. Only where it stands at an anchor of the whole expression; elsewhere it would be about a part of the
text, and the parser refuses it by name.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce

from services.tokenizer.grammar.automaton import Dfa, automaton, intersected, subtracted
from services.tokenizer.grammar.pattern import Pattern
from services.tokenizer.grammar.regex import parse_search, parse_whole


@dataclass(frozen=True, slots=True)
class Parts:
    """An expression without its lookaround, and expressions that must, or must not, be found in the same text."""

    core: str
    required: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()

    @property
    def is_plain(self) -> bool:
        return not self.required and not self.excluded


def split(source: str, *, is_whole: bool = False) -> Parts:
    """is_whole: the expression is about the whole text though it has no anchors."""
    begin = "^" if source.startswith("^") else "" if is_whole else None
    last = next((place for place, char in _plain(source) if char == "$" and place == len(source) - 1), None)
    end = "$" if last is not None else "" if is_whole else None
    core = source.removeprefix(begin or "")
    core = core[: len(core) - len(end or "")]
    required: list[str] = []
    excluded: list[str] = []
    while begin is not None and core.startswith(("(?=", "(?!")) and (length := _group_length(core)) is not None:
        (required if core[2] == "=" else excluded).append(f"^(?:{core[3 : length - 1]})")
        core = core[length:]
    while end is not None and (start := _last_group(core)) is not None and core[start:].startswith(("(?<=", "(?<!")):
        (required if core[start + 3] == "=" else excluded).append(f"(?:{core[start + 4 : -1]})$")
        core = core[:start]
    if not (required or excluded) or _has_alternatives(core):
        return Parts(source)
    return Parts((begin or "") + core + (end or ""), tuple(required), tuple(excluded))


def searched(source: str) -> Dfa:
    """The texts in which a match is found."""
    return _combined(split(source), parse_search)


def whole(source: str) -> Dfa:
    """The texts that match as a whole."""
    return _combined(split(source, is_whole=True), parse_whole)


def _combined(parts: Parts, parse: Callable[[str], Pattern]) -> Dfa:
    dfa = automaton(parse(parts.core))
    dfa = reduce(intersected, (automaton(parse_search(one)) for one in parts.required), dfa)
    return reduce(subtracted, (automaton(parse_search(one)) for one in parts.excluded), dfa)


def _group_length(source: str) -> int | None:
    """Characters of the group that the text begins with."""
    return next((start + length for start, length in _groups(source) if start == 0), None)


def _last_group(source: str) -> int | None:
    """Where the group begins that the text ends with."""
    return next((start for start, length in _groups(source) if start + length == len(source)), None)


def _has_alternatives(source: str) -> bool:
    inside = {place for start, length in _groups(source) for place in range(start, start + length)}
    return any(char == "|" and place not in inside for place, char in _plain(source))


def _groups(source: str) -> Iterator[tuple[int, int]]:
    """(start, length) of the groups that are in no other."""
    depth = start = 0
    for place, char in _plain(source):
        if char == "(":
            start = place if depth == 0 else start
            depth += 1
        elif char == ")" and depth:
            depth -= 1
            if depth == 0:
                yield start, place + 1 - start


def _plain(source: str) -> Iterator[tuple[int, str]]:
    """The characters that are neither escaped nor in a class, and where they are."""
    place, in_class = 0, False
    while place < len(source):
        char = source[place]
        if char == "\\":
            place += 1
        elif in_class:
            in_class = char != "]"
        elif char == "[":
            in_class = True
            if source.startswith("^]", place + 1) or source.startswith("]", place + 1):
                place += 1 + source.startswith("^", place + 1)
        else:
            yield place, char
        place += 1
