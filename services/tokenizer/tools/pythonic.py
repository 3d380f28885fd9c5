"""Calls as a list in Python's notation: [name(key=value, ...), ...]; Llama 4 puts it between <|python_start|> and
<|python_end|>.

Arguments become JSON, one by one as their values are complete. The first name must be one of the request's tools and
its arguments named ones, by which calls are told from other text in brackets. An answer that ends inside a value
leaves the call without it.
"""

import re

import msgspec

from services.tokenizer.tools.calls import MAX_NAME, CallReader, NotACall
from services.tokenizer.tools.python_literal import to_json
from services.tokenizer.tools.reader import Markers, Steps

START, END = "<|python_start|>", "<|python_end|>"

_WORD = re.compile(r"[A-Za-z0-9_.:-]*")
_OUTSIDE = re.compile(r"[\"'\[\](){},]")
_IN_STRING = {quote: re.compile(rf"[{quote}\\]") for quote in "\"'"}


class PythonicReader(CallReader):
    """Calls anywhere in the text."""

    _markers = Markers("[", START)

    def _call(self, marker: str) -> Steps[None]:
        if marker == START:
            yield from self._skip_space()
            if not (yield from self._accept("[")):
                raise NotACall
        while True:
            yield from self._function()
            yield from self._skip_space()
            if not (yield from self._accept(",")):
                break
        if not (yield from self._accept("]")):
            raise NotACall
        self._commit()
        if marker == START:
            yield from self._close(END)

    def _function(self) -> Steps[None]:
        yield from self._skip_space()
        name = yield from self._word()
        yield from self._skip_space()
        if name not in self._tool_names or not (yield from self._accept("(")):
            raise NotACall
        key = yield from self._key()
        self._begin(name)
        if not key:
            self._arguments("{}")
            return
        opening = "{"
        while key:
            value = yield from self._argument()
            self._commit()
            self._arguments(f"{opening}{_quoted(key)}: {to_json(value)}")
            opening = ", "
            key = (yield from self._key()) if (yield from self._accept(",")) else ""
        yield from self._accept(")")
        self._commit()
        self._arguments("}")

    def _key(self) -> Steps[str]:
        """The next argument's name and what follows it; empty after the last one, the bracket gone over."""
        yield from self._skip_space()
        if (yield from self._accept(")")):
            return ""
        key = yield from self._word()
        yield from self._skip_space()
        if not key or not (yield from self._accept("=")):
            raise NotACall
        return key

    def _word(self) -> Steps[str]:
        before = self._at - self._start
        while True:
            match = _WORD.match(self._text, self._at)
            assert match is not None
            self._at = match.end()
            word = self._text[self._start + before : self._at]
            if len(word) > MAX_NAME:
                raise NotACall
            if self._at < len(self._text) or not (yield from self._more()):
                return word

    def _argument(self) -> Steps[str]:
        """Goes over a value, up to the comma or bracket that ends it. Raises NotACall when the answer ends first."""
        before, depth, quote = self._at - self._start, 0, ""
        while True:
            found = (_IN_STRING[quote] if quote else _OUTSIDE).search(self._text, self._at)
            if found is None:
                self._at = len(self._text)
                if not (yield from self._more()):
                    raise NotACall
                continue
            self._at = found.end()
            match found.group():
                case "\\":
                    if not (yield from self._peek()):
                        raise NotACall
                    self._at += 1
                case '"' | "'" as mark:
                    quote = "" if quote else mark
                case "[" | "(" | "{":
                    depth += 1
                case "]" | ")" | "}" if depth:
                    depth -= 1
                case "," if depth:
                    pass
                case _:
                    self._at -= 1
                    return self._text[self._start + before : self._at]


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()
