"""Expressions over characters as trees, which both regexes and rules of strings and numbers become."""

from collections.abc import Iterable
from dataclasses import dataclass

from services.tokenizer.grammar.charset import ANY, Chars, intersection, of, union


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


@dataclass(frozen=True, slots=True)
class Look:
    """No character, but a condition on a place: that the pattern matches what comes next, or what came last."""

    pattern: "Pattern"
    is_ahead: bool
    is_negated: bool


Pattern = One | Seq | Alt | Repeat | Look

EMPTY = Seq(())
NOTHING = Alt(())
"""Matches no text at all."""

BEGIN = Look(One(ANY), is_ahead=False, is_negated=True)
END = Look(One(ANY), is_ahead=True, is_negated=True)
"""The ends of the text."""

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


def has_look(pattern: Pattern) -> bool:
    match pattern:
        case One():
            return False
        case Look():
            return True
        case Repeat(part):
            return has_look(part)
    return any(map(has_look, pattern.parts))


def lengths(pattern: Pattern) -> tuple[int, int | None]:
    """(least, most) characters of a match; (0, 0) for a pattern that matches nothing. most None: no bound."""
    match pattern:
        case One():
            return 1, 1
        case Look():
            return 0, 0
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


def firsts(pattern: Pattern) -> Chars:
    """Characters with which a match can begin; all of them for a condition on a place."""
    match pattern:
        case One(chars):
            return chars
        case Look():
            return ANY
        case Alt(parts):
            return union(pair for part in parts for pair in firsts(part))
        case Repeat(part):
            return firsts(part)
        case Seq(parts):
            found: list[tuple[int, int]] = []
            for part in parts:
                found += firsts(part)
                if lengths(part)[0]:
                    break
            return union(found)


def has_clear_ends(pattern: Pattern) -> bool:
    """Whether the next character tells, where a repeat may be over, if it is. Where it does not, each number of repeats
    is another way to read the text."""
    match pattern:
        case One() | Look():
            return True
        case Alt(parts):
            return all(map(has_clear_ends, parts))
        case Repeat(part):
            return has_clear_ends(part)
        case Seq(parts):
            return all(map(has_clear_ends, parts)) and not any(
                isinstance(part, Repeat)
                and part.least != part.most
                and intersection(firsts(part), firsts(Seq(parts[place + 1 :])))
                for place, part in enumerate(parts)
            )


FEW = 4
"""Repeats of something without bound that room is made for, where there is only so much."""


def shrunk(pattern: Pattern, room: int) -> Pattern:
    """A pattern of the matches that surely fit into `room` characters: not of all of them, but of as many as a fixed
    share for each part allows."""
    low, high = lengths(pattern)
    if low > room:
        return NOTHING
    if high is not None and high <= room:
        return pattern
    match pattern:
        case One() | Look():
            return pattern
        case Seq(parts):
            return seq(shrunk(part, share) for part, share in zip(parts, _shares(parts, room), strict=True))
        case Alt(parts):
            return alt(shrunk(part, room) for part in parts)
        case Repeat(part, least, most):
            low, high = lengths(part)
            if high is None:
                count = max(least, FEW if most is None else min(most, FEW))
                while count > max(least, 1) and room // count < max(low, 1):
                    count -= 1
                part, high = shrunk(part, room // max(count, 1)), room // max(count, 1)
            count = room // max(high, 1)
            if count < least:
                part, count = shrunk(part, room // least), least
            return repeat(part, least, count if most is None else min(most, count))


def lengthened(pattern: Pattern, least: int) -> Pattern:
    """A pattern of matches of at least so many characters, where a repeat can be made to see to that: not of all of
    them. Otherwise the pattern as it is."""
    missing = least - lengths(pattern)[0]
    if missing <= 0:
        return pattern
    match pattern:
        case Seq(parts):
            for place in _by_room(parts):
                part = parts[place]
                longer = lengthened(part, lengths(part)[0] + missing)
                if longer != part:
                    return seq([*parts[:place], longer, *parts[place + 1 :]])
        case Alt(parts):
            longest = [one for part in parts if lengths(one := lengthened(part, least))[0] >= least]
            return alt(longest) if longest else pattern
        case Repeat(part, low, most):
            each = lengths(part)[0]
            count = low + -(-missing // each) if each else 0
            if each and (most is None or count <= most):
                return repeat(part, count, most)
    return pattern


def _by_room(parts: tuple[Pattern, ...]) -> list[int]:
    """Places of the parts, those that can become longest first."""
    tops = [lengths(part)[1] for part in parts]
    return sorted(range(len(parts)), key=lambda place: (tops[place] is not None, -(tops[place] or 0)))


def cut(pattern: Pattern, spare: int) -> Pattern:
    """With no more than so many repeats beyond those that must be; so within what must follow, not what must not."""
    match pattern:
        case One():
            return pattern
        case Seq(parts):
            return seq(cut(part, spare) for part in parts)
        case Alt(parts):
            return alt(cut(part, spare) for part in parts)
        case Look(inner, is_ahead, is_negated):
            return pattern if is_negated else Look(cut(inner, spare), is_ahead, is_negated)
        case Repeat(part, least, most):
            return repeat(cut(part, spare), least, None if most is None else min(most, least + spare))


def loosened(pattern: Pattern, count: int) -> Pattern:
    """A pattern of more matches, with fewer states: repeats of more than so many are of any number. What must not
    follow stays as it is."""
    match pattern:
        case One():
            return pattern
        case Seq(parts):
            return seq(loosened(part, count) for part in parts)
        case Alt(parts):
            return alt(loosened(part, count) for part in parts)
        case Look(inner, is_ahead, is_negated):
            return pattern if is_negated else Look(loosened(inner, count), is_ahead, is_negated)
        case Repeat(part, least, most):
            is_long = max(least, most or 0) > count
            inner = loosened(part, count)
            return repeat(inner, min(least, 1), None) if is_long else repeat(inner, least, most)


def _shares(parts: tuple[Pattern, ...], room: int) -> list[int]:
    """Characters for each part: what it needs, and of the rest as much as it can use or an equal share."""
    bounds = [lengths(part) for part in parts]
    shares = [low for low, _ in bounds]
    spare = room - sum(shares)
    wanting = [place for place, (low, high) in enumerate(bounds) if high is None or high > low]
    wanting.sort(key=lambda place: (bounds[place][1] is None, bounds[place][1] or 0))
    for count, place in enumerate(wanting):
        low, high = bounds[place]
        more = spare // (len(wanting) - count)
        if high is not None:
            more = min(more, high - low)
        shares[place] += more
        spare -= more
    return shares
