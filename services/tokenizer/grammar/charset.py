"""Sets of characters as sorted, disjoint, non-adjacent ranges of code points, both ends included."""

import functools
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


DIGIT = span("0", "9")
WORD = union((*DIGIT, *span("A", "Z"), *span("a", "z"), *of("_")))
SPACE = union((*of("\t\n\v\f\r \u00a0\u1680\u2028\u2029\u202f\u205f\u3000"), *span("\u2000", "\u200a")))
NEWLINES = of("\n\r\u2028\u2029")


def where(holds: Callable[[str], bool]) -> Chars:
    """All characters for which something holds: a scan of a tenth of a second, to be cached."""
    ranges: list[tuple[int, int]] = []
    start: int | None = None
    for point in range(LAST + 2):
        inside = point <= LAST and not 0xD800 <= point <= 0xDFFF and holds(chr(point))
        if inside and start is None:
            start = point
        elif not inside and start is not None:
            ranges.append((start, point - 1))
            start = None
    return tuple(ranges)


@functools.cache
def category(name: str) -> Chars:
    """Of Unicode's general categories, as `L` or `Lu`."""
    return where(lambda char: unicodedata.category(char).startswith(name))


@functools.cache
def wide(kind: str) -> Chars:
    """Everything that some dialect counts as `d`, `w` or `s`: what its negation must leave out."""
    match kind:
        case "d":
            return union((*DIGIT, *category("Nd")))
        case "w":
            return union((*WORD, *where(str.isalnum), *category("M"), *category("Pc")))
        case _:
            return union((*SPACE, *where(str.isspace), *of("\ufeff\x1c\x1d\x1e\x1f\x85")))
