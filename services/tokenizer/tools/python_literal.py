"""Python's literals to JSON, without evaluating anything."""

import json
import math
import re

MAX_DEPTH = 64

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |(?P<number>[-+]?(?:0[xX][0-9a-fA-F]+|0[oO][0-7]+|0[bB][01]+|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?![\w.]))
    |(?P<word>[A-Za-z_]\w*)
    |(?P<mark>[\[\](){},:])
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{1,3})|(.))", re.DOTALL)
_ESCAPED = {
    "n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v",
    "\\": "\\", "'": "'", '"': '"', "\n": "",
}  # fmt: skip
_WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
_CLOSING = {"[": "]", "(": ")"}
_INTEGER = re.compile(r"[-+]?(?:0[xXoObB]\w+|0+|[1-9]\d*)")


class NotLiteral(ValueError):
    """The text is no literal, or none that JSON could say."""


def to_json(text: str) -> str:
    """The literal as JSON text; what is no literal, as a JSON string of the text itself."""
    try:
        return json.dumps(_Parser(text).whole(), ensure_ascii=False)
    except NotLiteral:
        return json.dumps(text.strip(), ensure_ascii=False)


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._kind: str | None = None  # of the next token; None: the text's end
        self._token = ""
        self._next()

    def whole(self) -> object:
        value = self._value(MAX_DEPTH)
        if self._kind is not None:
            raise NotLiteral
        return value

    def _next(self) -> None:
        match = _TOKEN.match(self._text, self._at)
        if match is None:
            if self._text[self._at :].strip():
                raise NotLiteral
            self._kind, self._token = None, ""
            return
        assert match.lastgroup is not None
        self._at, self._kind, self._token = match.end(), match.lastgroup, match.group(match.lastgroup)

    def _accept(self, mark: str) -> bool:
        if self._kind != "mark" or self._token != mark:
            return False
        self._next()
        return True

    def _value(self, left: int) -> object:
        kind, token = self._kind, self._token
        if not left or kind is None:
            raise NotLiteral
        self._next()
        if kind == "string":
            return _string(token[1:-1])
        if kind == "number":
            return _number(token)
        if kind == "word":
            if token not in _WORDS:
                raise NotLiteral
            return _WORDS[token]
        if token == "{":
            return self._object(left - 1)
        if token in _CLOSING:
            return self._list(_CLOSING[token], left - 1)
        raise NotLiteral

    def _list(self, closing: str, left: int) -> object:
        """A list or tuple; round brackets around one value are none."""
        values: list[object] = []
        has_comma = False
        while not self._accept(closing):
            if values and not has_comma:
                raise NotLiteral
            values.append(self._value(left))
            has_comma = self._accept(",")
        return values[0] if closing == ")" and len(values) == 1 and not has_comma else values

    def _object(self, left: int) -> object:
        items: dict[str, object] = {}
        has_comma = True
        while not self._accept("}"):
            if not has_comma:
                raise NotLiteral
            key = self._value(left)
            if isinstance(key, list | dict) or not self._accept(":"):
                raise NotLiteral
            items[key if isinstance(key, str) else json.dumps(key)] = self._value(left)
            has_comma = self._accept(",")
        return items


def _string(body: str) -> str:
    text = _ESCAPE.sub(_unescape, body)
    # two halves of a character are one, a half alone is none
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _unescape(match: "re.Match[str]") -> str:
    short, middle, long, octal, other = match.groups()
    if other is not None:
        return _ESCAPED.get(other, match.group())
    code = int(octal, 8) if octal else int(short or middle or long, 16)
    if code > 0x10FFFF:
        raise NotLiteral
    return chr(code)


def _number(token: str) -> int | float:
    try:
        if _INTEGER.fullmatch(token):
            return int(token, 0)
        value = float(token)
    except ValueError:  # too many digits
        raise NotLiteral from None
    if not math.isfinite(value) or re.fullmatch(r"[-+]?\d+", token):  # 007
        raise NotLiteral
    return value
