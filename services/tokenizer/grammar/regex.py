r"""Regular expressions, in what ECMAScript and Python have in common, as patterns.

Where the two differ, the narrower reading is taken, so that a match is one in both: `\d`, `\w` and `\s` are ASCII and
few spaces, their negations leave out what either counts, `.` leaves out every line break, `$` is the very end. What
must not follow or come before is read the wider way for the same reason. Back-references and flags are refused by name.
"""

import re

from services.tokenizer.grammar.charset import (
    ANY,
    DIGIT,
    NEWLINES,
    SPACE,
    WORD,
    Chars,
    category,
    complement,
    difference,
    is_single,
    of,
    span,
    union,
    wide,
)
from services.tokenizer.grammar.errors import Unenforceable
from services.tokenizer.grammar.limits import MAX_DEPTH, MAX_REPEAT
from services.tokenizer.grammar.pattern import (
    ANYTHING,
    BEGIN,
    EMPTY,
    END,
    NOTHING,
    Alt,
    Look,
    One,
    Pattern,
    Repeat,
    Seq,
    alt,
    has_look,
    repeat,
    seq,
)

MAX_WAYS = 64
"""Ways through alternatives with anchors that are told apart; of more, the anchors are conditions."""

_NARROW = {"d": DIGIT, "w": WORD, "s": SPACE}
_CONTROL = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "a": "\a"}
_LOOKS = {"=": (True, False), "!": (True, True), "<=": (False, False), "<!": (False, True)}
"""Whether it looks ahead, and whether for what must not be."""

_QUANTIFIER = re.compile(r"\{(\d*)(,?)(\d*)\}", re.ASCII)
_NAME = re.compile(r"P?<[^\W\d]\w*>")
_OCTAL = re.compile(r"0[0-7]{0,2}")
_HEX = re.compile(r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|u\{([0-9A-Fa-f]{1,6})\}|U([0-9A-Fa-f]{8})")


def parse_whole(source: str) -> Pattern:
    """What must match the whole text; anchors at its ends are allowed and mean nothing."""
    return _anchored(_Parser(source).whole(), is_open=False)


def parse_search(source: str, *, is_wide: bool = False) -> Pattern:
    """What must match somewhere in the text, as JSON Schema's `pattern`: a pattern of the whole text. is_wide: read so
    that all is found that some dialect would find."""
    return _anchored(_Parser(source, is_wide=is_wide).whole(), is_open=True)


def _one(chars: Chars) -> Pattern:
    return One(chars) if chars else NOTHING


def _looks_ahead(pattern: Pattern) -> bool:
    match pattern:
        case One():
            return False
        case Look(inner, is_ahead):
            return is_ahead or _looks_ahead(inner)
        case Repeat(part):
            return _looks_ahead(part)
    return any(map(_looks_ahead, pattern.parts))


def _word_border(*, is_wide: bool) -> Pattern:
    """A word's character on one side only: of the narrow kind, and on the other side none of the wide one."""
    words = One(WORD), One(wide("w"))
    pairs = [(one, one) for one in words] if is_wide else [words]
    return alt(
        way
        for inside, outside in pairs
        for way in (seq([_is(inside, False), _not(outside, True)]), seq([_not(outside, False), _is(inside, True)]))
    )


def _no_word_border(*, is_wide: bool) -> Pattern:
    """Such characters on both sides, or none on either."""
    words = One(WORD), One(wide("w"))
    inside, outside = reversed(words) if is_wide else words
    return alt([seq([_is(inside, False), _is(inside, True)]), seq([_not(outside, False), _not(outside, True)])])


def _is(char: One, is_ahead: bool) -> Look:
    return Look(char, is_ahead, is_negated=False)


def _not(char: One, is_ahead: bool) -> Look:
    return Look(char, is_ahead, is_negated=True)


_WIDE_END = alt([END, Look(seq([One(of("\n")), END]), is_ahead=True, is_negated=False)])


class _Parser:
    def __init__(self, source: str, *, is_wide: bool = False) -> None:
        self._source = source
        self._is_wide = is_wide
        self._at = 0
        self._depth = 0

    def whole(self) -> Pattern:
        pattern = self._alternatives()
        if self._at < len(self._source):
            raise self._error("has an unmatched ')'")
        return pattern

    def _error(self, what: str) -> Unenforceable:
        return Unenforceable(f"{what} at character {self._at + 1} of the expression")

    def _peek(self, text: str) -> bool:
        return self._source.startswith(text, self._at)

    def _take(self, text: str) -> bool:
        if self._peek(text):
            self._at += len(text)
            return True
        return False

    def _next(self) -> str:
        if self._at >= len(self._source):
            raise self._error("ends too early")
        self._at += 1
        return self._source[self._at - 1]

    def _alternatives(self) -> Pattern:
        parts = [self._sequence()]
        while self._take("|"):
            parts.append(self._sequence())
        return alt(parts)

    def _sequence(self) -> Pattern:
        parts: list[Pattern] = []
        while self._at < len(self._source) and not self._peek("|") and not self._peek(")"):
            parts.append(self._quantified(self._atom()))
        return seq(parts)

    def _quantified(self, part: Pattern) -> Pattern:
        bounds = self._bounds()
        if bounds is None:
            return part
        if isinstance(part, Look):
            raise self._error("repeats an anchor or lookaround")
        least, most = bounds
        if most is not None and most < least:
            raise self._error(f"has a repeat {{{least},{most}}} whose bounds are in the wrong order")
        if max(least, most or 0) > MAX_REPEAT:
            raise self._error(f"has a repeat of more than {MAX_REPEAT}")
        if self._take("?"):
            pass  # as few as possible: the same texts
        elif self._peek("+"):
            raise self._error("has a possessive quantifier, which is not supported,")
        if self._bounds() is not None:
            raise self._error("repeats a repeat")
        if isinstance(part, Repeat) and part.most is None and part.least <= 1 and most is None and least <= 1:
            return repeat(part.part, min(part.least, least), None)  # (a*)* is a*
        return repeat(part, least, most)

    def _bounds(self) -> tuple[int, int | None] | None:
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return bounds
        found = _QUANTIFIER.match(self._source, self._at)
        if found is None or not (found.group(1) or found.group(3)):
            return None
        self._at = found.end()
        if max(map(len, found.groups())) > 9:
            raise self._error(f"has a repeat of more than {MAX_REPEAT}")
        least = int(found.group(1) or 0)
        if not found.group(2):
            return least, least
        return least, int(found.group(3)) if found.group(3) else None

    def _atom(self) -> Pattern:
        char = self._next()
        match char:
            case "(":
                return self._group()
            case "[":
                return _one(self._class())
            case ".":
                return One(difference(ANY, of("\n") if self._is_wide else NEWLINES))
            case "^":
                return BEGIN
            case "$":
                return _WIDE_END if self._is_wide else END
            case "\\":
                return self._escape()
            case "*" | "+" | "?":
                self._at -= 1
                raise self._error(f"has nothing to repeat before {char!r}")
        return One(of(char))

    def _group(self) -> Pattern:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"has groups nested more than {MAX_DEPTH} deep")
        if self._take("?"):
            for mark, (is_ahead, is_negated) in _LOOKS.items():
                if self._take(mark):
                    return self._look(is_ahead, is_negated)
            named = _NAME.match(self._source, self._at)
            if named is not None:
                self._at = named.end()
            elif self._peek("P="):
                raise self._error("has a back-reference, which is not supported,")
            elif self._peek(">"):
                raise self._error("has an atomic group, which is not supported,")
            elif not self._take(":"):
                raise self._error("has flags or a group of an unknown kind, which is not supported,")
        return self._closed()

    def _closed(self) -> Pattern:
        inner = self._alternatives()
        if not self._take(")"):
            raise self._error("has an unmatched '('")
        self._depth -= 1
        return inner

    def _look(self, is_ahead: bool, is_negated: bool) -> Pattern:
        is_wide = self._is_wide
        self._is_wide = is_wide != is_negated
        inner = self._closed()
        self._is_wide = is_wide
        if not is_ahead and _looks_ahead(inner):
            raise self._error("looks ahead within a lookbehind, which is not supported,")
        return Look(inner, is_ahead, is_negated)

    def _escape(self) -> Pattern:
        char = self._next()
        match char:
            case "A":
                return BEGIN
            case "Z" | "z":
                return END
            case "b" | "B":
                return _word_border(is_wide=self._is_wide) if char == "b" else _no_word_border(is_wide=self._is_wide)
            case "k" | "1" | "2" | "3" | "4" | "5" | "6" | "7" | "8" | "9":
                raise self._error("has a back-reference, which is not supported,")
        narrow, wider = self._escaped(char)
        if self._is_wide:
            return _one(complement(self._least(wider)) if narrow is None else wider)
        return _one(complement(wider) if narrow is None else narrow)

    def _escaped(self, char: str) -> tuple[Chars | None, Chars]:
        """(the set, the most that a dialect makes of it) of an escape; (None, S): all but S."""
        if char in _NARROW:
            return _NARROW[char], wide(char)
        if char.lower() in _NARROW:
            return None, wide(char.lower())
        if char in _CONTROL:
            return of(_CONTROL[char]), of(_CONTROL[char])
        if char == "0":  # digits behind it are part of it, in ECMAScript too
            return self._octal()
        if char in "pP":
            return self._property(is_negated=char == "P")
        if char in "xuU":
            return self._code_point(char)
        if char == "c":
            letter = self._next()
            if not ("a" <= letter.lower() <= "z"):
                raise self._error("has a \\c without a letter")
            return (same := of(chr(ord(letter) % 32))), same
        if char.isalnum():
            raise self._error(f"has an unknown escape \\{char}")
        return of(char), of(char)

    def _property(self, *, is_negated: bool) -> tuple[Chars | None, Chars]:
        end = self._source.find("}", self._at)
        if not self._take("{") or end < 0:
            raise self._error("has a \\p without a property in braces")
        name = self._source[self._at : end]
        self._at = end + 1
        short = _CATEGORIES.get(name, name).removeprefix("gc=").removeprefix("General_Category=")
        chars = _POSIX.get(name) or (category(short) if re.fullmatch(r"[CLMNPSZ][a-z]?", short) else ())
        if not chars:
            raise self._error(f"has a Unicode property {name[:40]!r} that is not supported,")
        return (None, chars) if is_negated else (chars, chars)

    def _octal(self) -> tuple[Chars, Chars]:
        found = _OCTAL.match(self._source, self._at - 1)
        assert found is not None
        self._at = found.end()
        return (same := of(chr(int(found.group(), 8)))), same

    def _code_point(self, char: str) -> tuple[Chars, Chars]:
        found = _HEX.match(self._source, self._at - 1)
        if found is None:
            raise self._error(f"has a \\{char} without its digits")
        self._at = found.end()
        point = int(next(filter(None, found.groups())), 16)
        if 0xD800 <= point <= 0xDBFF:  # half a pair: the other half must follow
            other = _HEX.match(self._source, self._at + 1) if self._peek("\\u") else None
            low = int(other.group(2) or "0", 16) if other is not None else 0
            if other is None or not 0xDC00 <= low <= 0xDFFF:
                raise self._error("has half of a surrogate pair")
            self._at = other.end()
            point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00)
        if point > 0x10FFFF or 0xDC00 <= point <= 0xDFFF:
            raise self._error("has a number that is no character's")
        return ((point, point),), ((point, point),)

    def _class(self) -> Chars:
        is_negated = self._take("^")
        narrow: list[tuple[int, int]] = []
        wider: list[tuple[int, int]] = []
        is_first = True
        while not self._take("]") or (is_first and self._python_bracket()):
            is_first = False
            low, most = self._class_item()
            if self._peek("-") and not self._peek("-]"):
                self._at += 1
                high, most_high = self._class_item()
                if low is not None and high is not None and is_single(low) and is_single(high):
                    if high[0][0] < low[0][0]:
                        raise self._error("has a range whose ends are in the wrong order")
                    low = most = ((low[0][0], high[0][0]),)
                else:  # as in `[\\w-.]`: ECMAScript takes the hyphen for itself, Python for an error
                    narrow += [*of("-"), *(complement(most_high) if high is None else high)]
                    wider += [*of("-"), *(complement(self._least(most_high)) if high is None else most_high)]
            # of a negated set inside: what is surely in it, and what may be in it by some dialect
            narrow += complement(most) if low is None else low
            wider += complement(self._least(most)) if low is None else most
        chars = union(wider if is_negated != self._is_wide else narrow)
        return complement(chars) if is_negated else chars

    @staticmethod
    def _least(most: Chars) -> Chars:
        """The narrow reading of \\d, \\w or \\s, given the wide one."""
        return next((chars for kind, chars in _NARROW.items() if wide(kind) == most), most)

    def _python_bracket(self) -> bool:
        """`[]` ends at once in ECMAScript and begins with a bracket in Python: not for us to choose."""
        raise self._error("has an empty class, which dialects read differently,")

    def _class_item(self) -> tuple[Chars | None, Chars]:
        char = self._next()
        if char == "[" and self._peek(":"):
            raise self._error("has a POSIX class, which is not supported,")
        if char != "\\":
            return of(char), of(char)
        char = self._next()
        return (of("\b"), of("\b")) if char == "b" else self._escaped(char)


_CATEGORIES = {
    "Letter": "L", "Lowercase_Letter": "Ll", "Uppercase_Letter": "Lu", "Number": "N", "Decimal_Number": "Nd",
    "Punctuation": "P", "Symbol": "S", "Separator": "Z", "Mark": "M", "Other": "C", "Control": "Cc", "digit": "Nd",
}  # fmt: skip

_LOWER, _UPPER, _PUNCTUATION = (
    span("a", "z"),
    span("A", "Z"),
    union((*span("!", "/"), *span(":", "@"), *span("[", "`"), *span("{", "~"))),
)
_POSIX = {
    "ASCII": ((0, 0x7F),), "Lower": _LOWER, "Upper": _UPPER, "Alpha": union((*_LOWER, *_UPPER)), "Digit": DIGIT,
    "Alnum": union((*_LOWER, *_UPPER, *DIGIT)), "Punct": _PUNCTUATION, "Graph": span("!", "~"), "Print": span(" ", "~"),
    "Blank": of(" \t"), "Cntrl": ((0, 0x1F), (0x7F, 0x7F)), "XDigit": union((*DIGIT, *span("A", "F"), *span("a", "f"))),
    "Space": union((*span("\t", "\r"), *of(" "))),
}  # fmt: skip
"""What Java calls properties too; ECMAScript knows the first of them, and no other dialect means something else."""


def _anchored(pattern: Pattern, *, is_open: bool) -> Pattern:
    """The pattern of the whole text; is_open: where there was no anchor, anything may stand before and behind. Anchors
    at the ends of alternatives are gone then, others are conditions."""
    around = ANYTHING if is_open else EMPTY
    ways = _unanchored(pattern) if has_look(pattern) else [(False, pattern, False)]
    if ways is None:
        ways = [(False, pattern, False)]
    if is_open:
        ways = [(begins, _least(inner, before=not begins, behind=not ends), ends) for begins, inner, ends in ways]
    return alt(seq([EMPTY if begins else around, inner, EMPTY if ends else around]) for begins, inner, ends in ways)


def _least(pattern: Pattern, *, before: bool, behind: bool) -> Pattern:
    """As much of the pattern as is to be found in a text where anything may stand before or behind: repeats at these
    ends need no more than their least number."""
    parts: list[Pattern] = list(pattern.parts) if isinstance(pattern, Seq) else [pattern]
    for place, is_open in ((0, before), (-1, behind)):
        while is_open and parts and isinstance(end := parts[place], Repeat):
            parts[place] = repeat(end.part, end.least, end.least)
            if parts[place] != EMPTY:
                break
            del parts[place]
    return seq(parts)


def _unanchored(pattern: Pattern) -> list[tuple[bool, Pattern, bool]] | None:
    """(begins at the start, pattern, ends at the end), one for each way through alternatives that have anchors. None:
    there are too many, anchors in the middle, or other conditions."""
    if not has_look(pattern):
        return [(False, pattern, False)]
    match pattern:
        case Look():
            return [(True, EMPTY, False)] if pattern == BEGIN else [(False, EMPTY, True)] if pattern == END else None
        case Alt(parts):
            found = [_unanchored(part) for part in parts]
            return None if None in found else [way for ways in found for way in ways or ()]
        case Seq(parts):
            ways: list[tuple[bool, Pattern, bool]] = [(False, EMPTY, False)]
            for part in parts:
                behind = _unanchored(part)
                joined = [_joined(one, other) for one in ways for other in behind or ()]
                if behind is None or None in joined or len(joined) > MAX_WAYS:
                    return None
                ways = [way for way in joined if way is not None]
            return ways
    return None


def _joined(
    before: tuple[bool, Pattern, bool], behind: tuple[bool, Pattern, bool]
) -> tuple[bool, Pattern, bool] | None:
    if (behind[0] and before[1] != EMPTY) or (before[2] and behind[1] != EMPTY):
        return None
    return before[0] or behind[0], seq([before[1], behind[1]]), before[2] or behind[2]
