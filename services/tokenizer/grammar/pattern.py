"""Expressions over characters as trees, which both regexes and rules of strings and numbers become."""

from collections.abc import Iterable
from dataclasses import dataclass

from services.tokenizer.grammar.charset import ANY, Chars, of, union


@dataclass(frozen=True, slots=True)
class One:
    """One character of a set."""

    chars: Chars


@dataclass(frozen=True, slots=True)
class Seq:
    parts: "tuple[Pattern, ...]"


@dataclass(frozen=True, slots=True)
class Alt:
    parts: "tuple[Pattern, ...]"


@dataclass(frozen=True, slots=True)
class Repeat:
    """most None: without bound."""

    part: "Pattern"
    least: int
    most: int | None


Pattern = One | Seq | Alt | Repeat

EMPTY = Seq(())
NOTHING = Alt(())
"""Matches no text at all."""

ANYTHING = Repeat(One(ANY), 0, None)


def literal(text: str) -> Pattern:
    return seq(One(of(char)) for char in text)


def seq(parts: Iterable[Pattern]) -> Pattern:
    flat: list[Pattern] = []
    for part in parts:
        flat += part.parts if isinstance(part, Seq) else [part]
    if NOTHING in flat:
        return NOTHING
    return flat[0] if len(flat) == 1 else Seq(tuple(flat))


def alt(parts: Iterable[Pattern]) -> Pattern:
    """Single characters become one set."""
    flat: dict[Pattern, None] = {}
    for part in parts:
        flat |= dict.fromkeys(part.parts if isinstance(part, Alt) else [part])
    singles = [part for part in flat if isinstance(part, One)]
    others: list[Pattern] = [part for part in flat if not isinstance(part, One)]
    if singles:
        others.insert(0, One(union(pair for single in singles for pair in single.chars)))
    return others[0] if len(others) == 1 else Alt(tuple(others))


def repeat(part: Pattern, least: int, most: int | None) -> Pattern:
    if (least, most) == (1, 1):
        return part
    if part == NOTHING:
        return NOTHING if least else EMPTY
    if most == 0 or part == EMPTY:
        return EMPTY
    return Repeat(part, least, most)


def optional(part: Pattern) -> Pattern:
    return repeat(part, 0, 1)


def lengths(pattern: Pattern) -> tuple[int, int | None]:
    """(least, most) characters of a match; (0, 0) for a pattern that matches nothing. most None: no bound."""
    match pattern:
        case One():
            return 1, 1
        case Seq(parts):
            bounds = [lengths(part) for part in parts]
            tops = [most for _, most in bounds]
            return sum(least for least, _ in bounds), None if None in tops else sum(filter(None, tops))
        case Alt(parts):
            bounds = [lengths(part) for part in parts] or [(0, 0)]
            tops = [most for _, most in bounds]
            return min(least for least, _ in bounds), None if None in tops else max(top or 0 for top in tops)
        case Repeat(part, least, most):
            low, high = lengths(part)
            return low * least, None if most is None or high is None else high * most
