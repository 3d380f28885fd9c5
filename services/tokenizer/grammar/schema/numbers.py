"""JSON numbers as rules: bounds, whole numbers, multiples, and numbers that are left out.

Numbers have at most 15 digits, which is what a double holds: a reader sees the number that was written. Fractions that
must be multiples are those that doubles hold exactly, so that a validator which divides finds no remainder.
"""

import functools
import math
from decimal import Decimal
from fractions import Fraction

from services.tokenizer.grammar.automaton import automaton
from services.tokenizer.grammar.charset import DIGIT
from services.tokenizer.grammar.dfa import Dfa, alphabet, explored, intersected, subtracted
from services.tokenizer.grammar.errors import Unenforceable
from services.tokenizer.grammar.pattern import NOTHING, One, Pattern, alt, literal, optional, repeat, seq
from services.tokenizer.grammar.regex import parse_whole
from services.tokenizer.grammar.rules import Rules, automaton_rule, text_expression
from services.tokenizer.grammar.schema.admits import range_admits
from services.tokenizer.grammar.schema.branch import Range

DIGITS = 15
MAX_STEP = 4000
"""Largest step between multiples that states count; above, some multiples are listed."""
MAX_LISTED = 500

_DIGIT = One(DIGIT)
_ANY_INTEGER = parse_whole(r"-?(?:0|[1-9]\d{0,14})")
_ANY_NUMBER = parse_whole(r"-?(?:0|[1-9]\d{0,14})(?:\.\d{1,15})?(?:[eE][+-]?\d{1,2})?")
_INTEGER = parse_whole(r"-?\d+")
_WHOLE_FRACTION = parse_whole(r"-?\d+\.0*")


def expression(asked: Range, excluded: list[int | float], rules: Rules) -> str | None:
    """None: there is no such number."""
    is_free = asked.low is asked.high is None and not (asked.multiples or asked.not_multiples or excluded)
    if is_free and asked.is_integer is not False:
        return rules.add(text_expression(_ANY_INTEGER if asked.is_integer else _ANY_NUMBER, rules, is_json=False))
    dfa = _automaton(asked, tuple(excluded))
    return None if dfa.is_empty else automaton_rule(dfa, rules, is_json=False)


def is_open(asked: Range, excluded: list[int | float]) -> bool:
    """Whether there is such a number."""
    is_bound = asked.low is not None and asked.high is not None
    if not is_bound and not (asked.multiples or asked.not_multiples):
        return True
    return not _automaton(asked, tuple(excluded)).is_empty


@functools.lru_cache(maxsize=256)
def _automaton(asked: Range, excluded: tuple[int | float, ...]) -> Dfa:
    dfa = _of_range(asked)
    for value in excluded:
        dfa = subtracted(dfa, automaton(_spellings(Decimal(repr(value)))))
    return dfa


def _of_range(asked: Range) -> Dfa:
    places = 0 if asked.is_integer else _places(asked)
    if asked.multiples:
        dfa = _multiples(_common_multiple([Fraction(one) for one in asked.multiples]), asked)
    else:
        others = [_digits(one) + 1 for one in asked.not_multiples if one != one.to_integral_value()]
        dfa = automaton(_between(asked, max(places, *others, 0) if places else 0))
    if asked.is_integer is False or asked.not_multiples:
        dfa = subtracted(dfa, automaton(_WHOLE_FRACTION))
    if asked.is_integer is False:
        dfa = subtracted(dfa, automaton(_INTEGER))
    for one in asked.not_multiples:
        dfa = _no_multiples(dfa, one)
    return dfa


def _no_multiples(dfa: Dfa, step: Decimal) -> Dfa:
    """Without multiples of a step. Fractions have one digit more behind the point than the step, where it has any."""
    whole = _common_multiple([Fraction(step), Fraction(1)])
    places = _digits(step) + 1 if step != step.to_integral_value() else 0
    scaled = Fraction(step) * 10**places
    if max(whole, scaled) > MAX_STEP:
        raise Unenforceable(f"must not be a multiple of {step}, which cannot be enforced", keyword="multipleOf")
    dfa = subtracted(dfa, _steps(int(whole), 0))
    if not places:
        return dfa
    kept = alt([_INTEGER, seq([_INTEGER, literal("."), repeat(_DIGIT, places, places)])])
    return subtracted(intersected(dfa, automaton(kept)), _steps(int(scaled), places))


def _digits(value: Decimal) -> int:
    """Behind the point."""
    return max(-int(value.normalize().as_tuple().exponent), 0)


def _places(asked: Range) -> int:
    """Digits behind the point."""
    return min(max(6, 0, *(_digits(end) for end in (asked.low, asked.high) if end)), 12)


def _between(asked: Range, places: int) -> Pattern:
    """Numbers between bounds with up to so many digits behind the point."""
    low = None if asked.low is None else Fraction(asked.low)
    high = None if asked.high is None else Fraction(asked.high)
    parts = []
    for count in range(places + 1):
        if high is None or high >= 0:
            bottom, is_open = (low, asked.low_is_open) if low is not None and low >= 0 else (Fraction(0), False)
            parts.append(_magnitudes(bottom, is_open, high, asked.high_is_open, count))
        if low is None or low < 0:
            bottom, is_open = (-high, asked.high_is_open) if high is not None and high < 0 else (Fraction(0), True)
            top = None if low is None else -low
            parts.append(seq([literal("-"), _magnitudes(bottom, is_open, top, asked.low_is_open, count)]))
    return alt(part for part in parts if part != NOTHING)


def _magnitudes(low: Fraction, low_is_open: bool, high: Fraction | None, high_is_open: bool, places: int) -> Pattern:
    """Numbers of 0 or more with exactly so many digits behind the point."""
    scale = 10**places
    first = math.floor(low * scale) + 1 if low_is_open else math.ceil(low * scale)
    limit = 10**DIGITS - 1
    if high is None:
        last = limit if places or first <= limit else 10 * first
    else:
        last = math.ceil(high * scale) - 1 if high_is_open else math.floor(high * scale)
        last = min(last, limit) if places else last
    if first > last:
        return NOTHING
    if not places:
        return _integers(first, last)
    (whole, part), (top_whole, top_part) = divmod(first, scale), divmod(last, scale)
    point = literal(".")
    if whole == top_whole:
        return seq([literal(str(whole)), point, _padded(part, top_part, places)])
    parts = [seq([literal(str(whole)), point, _padded(part, scale - 1, places)])]
    if whole + 1 < top_whole:
        parts.append(seq([_integers(whole + 1, top_whole - 1), point, repeat(_DIGIT, places, places)]))
    parts.append(seq([literal(str(top_whole)), point, _padded(0, top_part, places)]))
    return alt(parts)


def _integers(first: int, last: int) -> Pattern:
    """Whole numbers from 0 or more, without leading zeros."""
    parts = []
    for length in range(len(str(first)), len(str(last)) + 1):
        low = max(first, 10 ** (length - 1) if length > 1 else 0)
        parts.append(_padded(low, min(last, 10**length - 1), length))
    return alt(parts)


def _padded(first: int, last: int, length: int) -> Pattern:
    """Whole numbers with exactly so many digits."""
    low, high = str(first).zfill(length), str(last).zfill(length)
    if int(low) == 0 and int(high) == 10**length - 1:
        return repeat(_DIGIT, length, length)
    same = next((place for place in range(length) if low[place] != high[place]), length)
    if same == length:
        return literal(low)
    head, a, b = low[:same], int(low[same]), int(high[same])
    rest = length - same - 1
    full = 10**rest
    parts = []
    below, above = int(low[same + 1 :] or 0), int(high[same + 1 :] or 0)
    if below:
        parts.append(seq([literal(str(a)), _padded(below, full - 1, rest)]))
        a += 1
    last_part = None
    if above != full - 1:
        last_part = seq([literal(str(b)), _padded(0, above, rest)])
        b -= 1
    if a <= b:
        parts.append(seq([One(((48 + a, 48 + b),)), repeat(_DIGIT, rest, rest)]))
    if last_part is not None:
        parts.append(last_part)
    return seq([literal(head), alt(parts)])


def _common_multiple(steps: list[Fraction]) -> Fraction:
    return functools.reduce(lambda one, other: Fraction(
        math.lcm(one.numerator * other.denominator, other.numerator * one.denominator),
        one.denominator * other.denominator,
    ), steps)  # fmt: skip


def _multiples(step: Fraction, asked: Range) -> Dfa:
    places = 0
    if asked.is_integer or step.denominator == 1:
        step = _common_multiple([step, Fraction(1)])
    else:
        finer = _common_multiple([step, Fraction(1, 4)])
        places = 2
        if not _divides_exactly(finer, [float(one) for one in asked.multiples]):
            step, places = _common_multiple([step, Fraction(1)]), 0
        else:
            step = finer
    scaled = step * 10**places
    assert scaled.denominator == 1
    if scaled > MAX_STEP:
        return automaton(_listed(int(scaled), places, asked))
    return intersected(_steps(int(scaled), places), automaton(_between(asked, places)))


def _divides_exactly(step: Fraction, divisors: list[float]) -> bool:
    """Whether a division of doubles finds that multiples of the step are multiples of the divisors."""
    return all((float(step * count) / divisor).is_integer() for divisor in divisors for count in range(1, 1000))


def _steps(step: int, places: int) -> Dfa:
    """Multiples of step / 10**places, written as whole numbers or with all those digits behind the point."""
    bounds = [0, *range(45, 59), 59]  # - . / and the digits
    State = tuple[str, int, int]

    def follow(state: State) -> list[State | None]:
        kind, rest, count = state
        row: list[State | None] = [None] * len(bounds)
        if kind == "start":
            row[1] = ("sign", 0, 0)
        if kind in ("start", "sign"):
            row[4] = ("zero", 0, 0)
        if kind == "zero" or kind == "whole":
            row[2] = ("point", rest, 0) if places else None
        for digit in range(10):
            if kind == "whole" or (kind in ("start", "sign") and digit):
                row[4 + digit] = ("whole", (rest * 10 + digit) % step, 0)
            elif kind == "point" and count < places:
                row[4 + digit] = ("point", (rest * 10 + digit) % step, count + 1)
        return row

    def accepts(state: State) -> bool:
        kind, rest, count = state
        if kind == "point":
            return count == places and rest == 0
        return kind in ("zero", "whole") and rest * 10**places % step == 0

    start: State = ("start", 0, 0)
    kinds, _ = alphabet(bounds, lambda span: span)
    return explored(kinds, start, follow, accepts)


def _listed(scaled: int, places: int, asked: Range) -> Pattern:
    """Some multiples, from the lower bound or else from the upper bound or 0 on."""
    step = Decimal(scaled).scaleb(-places)
    if asked.low is not None:
        first, way = math.ceil(Fraction(asked.low) / Fraction(step)), 1
    elif asked.high is not None:
        first, way = math.floor(Fraction(asked.high) / Fraction(step)), -1
    else:
        first, way = 0, 1
    candidates = (step * (first + way * count) for count in range(MAX_LISTED))
    return alt(literal(f"{value:f}") for value in candidates if range_admits(asked, value))


def _spellings(value: Decimal) -> Pattern:
    """Every way to write a number without an exponent."""
    zeros = repeat(literal("0"), 0, None)
    if value == value.to_integral_value():
        digits = str(int(value))
        sign = optional(literal("-")) if value == 0 else literal("")
        return seq([sign, literal(digits), optional(seq([literal("."), zeros]))])
    return seq([literal(f"{value.normalize():f}"), zeros])
