"""Sets of characters as sorted, disjoint, non-adjacent ranges of code points, both ends included."""

import functools
import itertools
import unicodedata
from collections.abc import Callable, Iterable

Chars = tuple[tuple[int, int], ...]

LAST = 0x10FFFF
SURROGATES: Chars = ((0xD800, 0xDFFF),)
NONE: Chars = ()
ANY: Chars = ((0, 0xD7FF), (0xE000, LAST))
"""Every character that UTF-8 can carry."""


def of(text: str) -> Chars:
    return union((ord(char), ord(char)) for char in text)


def span(first: str, last: str) -> Chars:
    return ((ord(first), ord(last)),)


def union(ranges: Iterable[tuple[int, int]]) -> Chars:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def complement(chars: Chars) -> Chars:
    out: list[tuple[int, int]] = []
    start = 0
    for low, high in (*chars, (LAST + 1, LAST + 1)):
        if start < low:
            out.append((start, low - 1))
        start = high + 1
    return intersection(tuple(out), ANY)


def intersection(one: Chars, other: Chars) -> Chars:
    out = []
    i = j = 0
    while i < len(one) and j < len(other):
        low, high = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        if low <= high:
            out.append((low, high))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return tuple(out)


def difference(one: Chars, other: Chars) -> Chars:
    return intersection(one, complement(other))


def contains(chars: Chars, char: str) -> bool:
    return any(low <= ord(char) <= high for low, high in chars)


def is_single(chars: Chars) -> bool:
    """Whether there is one character alone."""
    return len(chars) == 1 and chars[0][0] == chars[0][1]


DIGIT = span("0", "9")
WORD = union((*DIGIT, *span("A", "Z"), *span("a", "z"), *of("_")))
SPACE = union((*of("\t\n\v\f\r \u00a0\u1680\u2028\u2029\u202f\u205f\u3000"), *span("\u2000", "\u200a")))
NEWLINES = of("\n\r\u2028\u2029")


@functools.cache
def _runs() -> list[tuple[int, int, str]]:
    """(first, last, category) of neighbours of one category that also agree in being alphanumeric and white space: one
    scan, of a tenth of a second, for all that is asked of them."""
    runs = []
    point = 0
    for look, group in itertools.groupby(
        map(chr, range(LAST + 1)), lambda char: (unicodedata.category(char), char.isalnum(), char.isspace())
    ):
        last = point + sum(1 for _ in group) - 1
        runs.append((point, last, look[0]))
        point = last + 1
    return runs


def where(holds: Callable[[str, str], bool]) -> Chars:
    """All characters for which something holds that their category, `isalnum` and `isspace` tell. holds: of a character
    and its category."""
    return union((low, high) for low, high, kind in _runs() if kind != "Cs" and holds(chr(low), kind))


@functools.cache
def category(name: str) -> Chars:
    """Of Unicode's general categories, as `L` or `Lu`."""
    return where(lambda _, kind: kind.startswith(name))


@functools.cache
def wide(kind: str) -> Chars:
    """Everything that some dialect counts as `d`, `w` or `s`: what its negation must leave out."""
    match kind:
        case "d":
            return union((*DIGIT, *category("Nd")))
        case "w":
            return union((*WORD, *where(lambda char, _: char.isalnum()), *category("M"), *category("Pc")))
        case _:
            return union((*SPACE, *where(lambda char, _: char.isspace()), *of("\ufeff\x1c\x1d\x1e\x1f\x85")))
