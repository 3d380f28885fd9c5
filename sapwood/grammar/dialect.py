r"""Expressions of grammars in Python's own terms, read as a server reads them.

A server takes the narrower reading where ECMAScript and Python differ: `\d`, `\w` and `\s` are ASCII and few spaces,
`.` leaves out every line break, anchors stand only at the ends, where they mean nothing.
"""

import functools
import re
import unicodedata

from sapwood.grammar.errors import GrammarError

_SPACE = r"\t\n\v\f\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_NARROW = {"d": "0-9", "w": "A-Za-z0-9_", "s": _SPACE}
_CONTROL = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "0": "\0", "a": "\a", "b": "\b"}
_HEX = re.compile(r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|u\{([0-9A-Fa-f]{1,6})\}|U([0-9A-Fa-f]{8})")
_NAMED_GROUP = re.compile(r"\(\?P?<[^\W\d]\w*>")
_PROPERTY = re.compile(r"[pP]\{(?:gc=|General_Category=)?(\w+)\}")
_CATEGORIES = {
    "Letter": "L", "Lowercase_Letter": "Ll", "Uppercase_Letter": "Lu", "Number": "N", "Decimal_Number": "Nd",
    "Punctuation": "P", "Symbol": "S", "Separator": "Z", "Mark": "M", "Other": "C", "Control": "Cc", "digit": "Nd",
}  # fmt: skip
NOTHING = "(?:)"


@functools.lru_cache(maxsize=1024)
def compiled(pattern: str) -> "re.Pattern[str]":
    """Raises GrammarError for what is no expression."""
    try:
        return re.compile(_Translation(pattern).whole())
    except (re.error, OverflowError, RecursionError, IndexError) as error:
        raise GrammarError(f"has an expression that cannot be read, {pattern[:80]!r} ({error})") from None


def lengths(pattern: str) -> tuple[int, int | None]:
    """(0 or 1, 0 or None): whether a match may be empty, and whether it can be anything else."""
    expression = compiled(pattern)
    is_empty = expression.fullmatch("") is not None
    return 0 if is_empty else 1, 0 if pattern in ("", "^", "$", "^$") else None


class _Translation:
    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0

    def whole(self) -> str:
        out = []
        while self._at < len(self._source):
            out.append(self._element())
        return "".join(out)

    def _element(self) -> str:
        named = _NAMED_GROUP.match(self._source, self._at)
        if named is not None:
            self._at = named.end()
            return "(?:"
        char = self._next()
        match char:
            case "\\":
                if self._source[self._at : self._at + 1] in ("A", "Z", "z"):
                    self._at += 1
                    return NOTHING
                inside, is_negated = self._escape()
                return f"[^{inside}]" if is_negated else f"[{inside}]"
            case ".":
                return r"[^\n\r\u2028\u2029]"
            case "^" | "$":
                return NOTHING
            case "[":
                return self._class()
        return char

    def _next(self) -> str:
        if self._at >= len(self._source):
            raise IndexError("it ends too early")
        self._at += 1
        return self._source[self._at - 1]

    def _escape(self, *, is_excluded: bool = False) -> tuple[str, bool]:
        """What an escape stands for, as the inside of a class, and whether all but that is meant. is_excluded: what it
        stands for is left out, so it is read as wide as Python does."""
        char = self._next()
        found = _HEX.match(self._source, self._at - 1)
        if found is not None:
            self._at = found.end()
            return self._code_point(int(next(filter(None, found.groups())), 16)), False
        if char.lower() in _NARROW:
            is_negated = char not in _NARROW
            return f"\\{char.lower()}" if is_excluded != is_negated else _NARROW[char.lower()], is_negated
        if char in "pP":
            named = _PROPERTY.match(self._source, self._at - 1)
            if named is None:
                raise re.error("a \\p without a property in braces")
            self._at = named.end()
            return _category(_CATEGORIES.get(named[1], named[1])), char == "P"
        if char == "c":
            return _quoted(chr(ord(self._next()) % 32)), False
        if char not in _CONTROL and char.isalnum():
            raise re.error(f"an unknown escape \\{char}")
        return _quoted(_CONTROL.get(char, char)), False

    def _code_point(self, point: int) -> str:
        if 0xD800 <= point <= 0xDBFF and self._source.startswith("\\u", self._at):
            low = int(self._source[self._at + 2 : self._at + 6], 16)
            self._at += 6
            point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00)
        return _quoted(chr(point))

    def _class(self) -> str:
        is_negated = self._source.startswith("^", self._at)
        self._at += is_negated
        inside, others = [], []
        while not self._source.startswith("]", self._at):
            item, is_all_but = self._class_item(is_negated)
            if is_all_but:
                others.append(f"[^{item}]")
            elif self._source.startswith("-", self._at) and not self._source.startswith("-]", self._at):
                self._at += 1
                inside.append(f"{item}-{self._class_item(is_negated)[0]}")
            else:
                inside.append(item)
        self._at += 1
        if not is_negated:
            return "(?:" + "|".join([f"[{''.join(inside)}]"] * bool(inside) + others) + ")"
        not_in = "".join(f"(?!{other})" for other in others)
        return f"(?:{not_in}[^{''.join(inside)}])" if inside else f"(?:{not_in}[\\s\\S])"

    def _class_item(self, is_excluded: bool) -> tuple[str, bool]:
        char = self._next()
        return self._escape(is_excluded=is_excluded) if char == "\\" else (_quoted(char), False)


def _quoted(char: str) -> str:
    return f"\\U{ord(char):08x}"


@functools.cache
def _category(name: str) -> str:
    """The characters of a Unicode category, as the inside of a class."""
    ranges: list[list[int]] = []
    for point in range(0x110000):
        if not 0xD800 <= point <= 0xDFFF and unicodedata.category(chr(point)).startswith(name):
            if ranges and ranges[-1][1] == point - 1:
                ranges[-1][1] = point
            else:
                ranges.append([point, point])
    if not ranges:
        raise re.error(f"an unknown property {name[:40]!r}")
    return "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in ranges)
