"""What the readers of tool calls share: text around calls, and a call written as a JSON object.

Calls go out as they are written: the name as soon as it is known, then the arguments' JSON text, character by
character. Text that turns out to be no call is text of the answer again, from its first character on. An answer that
ends inside a call leaves what there is of it: a call whose arguments stop where the answer stopped; before the name
is known it is text.
"""

import re
from collections.abc import Callable, Collection
from typing import ClassVar

import msgspec

from services.tokenizer.tools.reader import SPACE, Markers, Steps, TextReader
from shared.messages import Channel

MAX_HELD = 1 << 16
"""Characters held while a call's name is not known; what goes on for longer is text."""

MAX_NAME = 256

NAME_KEYS = frozenset({"name"})
ARGUMENT_KEYS = frozenset({"arguments", "parameters"})

_NO_ARGUMENTS = ("", "null")
"""What a model may write instead of an object for a function without arguments."""

_OUTSIDE = re.compile(r'["\[\]{}]')
_IN_STRING = re.compile(r'["\\]')
_SCALAR = re.compile(r"[^\s,\[\]{}\"<]*")
_CUT_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3}|)$")
_decode_string = msgspec.json.Decoder(str).decode


class NotACall(Exception):
    """What looked like a call is none: what was looked at so far is text."""


class CallReader(TextReader):
    """Tells calls from text. tool_names: of the request.

    White space around calls belongs to neither; text without a call keeps all of its own.

    _markers: what a call may begin with. _keys: what a call object may hold ahead of the name; None: anything."""

    _markers: ClassVar[Markers]
    _keys: ClassVar[frozenset[str] | None] = None

    def __init__(self, tool_names: Collection[str]) -> None:
        self._tool_names = frozenset(tool_names)
        self.num_calls = 0
        self._space = ""  # said by the model and maybe next to a call
        self._last = ""  # the last characters of the text that are no space
        super().__init__()

    def _read(self) -> Steps[None]:
        while marker := (yield from self._until(self._markers)):
            before = self.num_calls
            try:
                yield from self._call(marker)
            except NotACall:
                if self._is_over and self.num_calls > before:  # cut: what is left is a call's punctuation
                    self._at = len(self._text)
                    self._commit()
            self._say(self._commit())
        if not self.num_calls:
            self._emit(Channel.CONTENT, self._space)

    def _call(self, marker: str) -> Steps[None]:
        """Reads what follows `marker`, which is looked at and not done with. Raises NotACall."""
        raise NotImplementedError

    def _until(self, markers: Markers) -> Steps[str]:
        """Says the text up to the first marker and goes over that; empty when the answer ends without one."""
        while True:
            found = markers.find(self._text, self._at)
            if found is not None:
                self._at = found.start()
                self._say(self._commit())
                self._at = found.end()
                return found.group()
            self._at = markers.held_from(self._text, self._at)
            self._say(self._commit())
            if not (yield from self._more()):
                self._at = len(self._text)
                self._say(self._commit())
                return ""

    def _say(self, text: str) -> None:
        """Text of the answer; white space waits until it is known not to be next to a call."""
        said = text.rstrip()
        if said:
            self._emit(Channel.CONTENT, self._space + said)
            self._space = ""
            self._last = (self._last + said)[-2:]
        self._space += text[len(said) :]

    def _begin(self, name: str) -> None:
        """A call is certain: what was looked at is part of it."""
        self._commit()
        self._space = ""
        self._emit(Channel.CALL_NAME, name, self.num_calls)
        self.num_calls += 1

    def _arguments(self, text: str) -> None:
        self._emit(Channel.CALL_ARGUMENTS, text, self.num_calls - 1)

    def _close(self, marker: str) -> Steps[bool]:
        """Goes over what ends a call, if that follows; an answer may end within it."""
        yield from self._skip_space()
        is_there = yield from self._accept(marker)
        if not is_there and self._is_over and marker.startswith(self._text[self._at :]):
            self._at = len(self._text)
            is_there = True
        if is_there:
            self._commit()
        return is_there

    # ------------------------------------------------------------------------------ calls as JSON

    def _json_calls(self, is_name: Callable[[str], bool]) -> Steps[None]:
        """A call object, or a list of them."""
        yield from self._skip_space()
        opening = yield from self._peek()
        if opening == "{":
            yield from self._json_call(is_name)
            return
        if opening != "[":
            raise NotACall
        self._at += 1
        while True:
            yield from self._skip_space()
            yield from self._json_call(is_name)
            yield from self._skip_space()
            if not (yield from self._accept(",")):
                break
        if (yield from self._accept("]")):
            self._commit()

    def _json_call(self, is_name: Callable[[str], bool]) -> Steps[None]:
        """{"name": ..., "arguments": {...}}, its keys in any order and others among them."""
        if not (yield from self._accept("{")):
            raise NotACall
        has_begun = has_arguments = False
        held: str | None = None
        while True:
            yield from self._skip_space()
            if (yield from self._accept("}")):
                break
            key = yield from self._json_string()
            if not has_begun and self._keys is not None and key not in self._keys:
                raise NotACall
            yield from self._skip_space()
            if not (yield from self._accept(":")):
                raise NotACall
            yield from self._skip_space()
            if key in NAME_KEYS and not has_begun:
                name = yield from self._json_string()
                if not name or len(name) > MAX_NAME or not is_name(name):
                    raise NotACall
                self._begin(name)
                has_begun = True
                if held is not None:
                    self._arguments(_object(held))
            elif key in ARGUMENT_KEYS and not has_arguments:
                has_arguments = True
                if has_begun:
                    yield from self._json_arguments()
                else:
                    held = yield from self._held_value()
            else:
                yield from self._held_value(is_limited=not has_begun)
            yield from self._skip_space()
            if not (yield from self._accept(",")):
                if not (yield from self._accept("}")):
                    if has_begun and not has_arguments and not self._is_over:  # it lacks its brace alone
                        self._arguments("{}")
                    raise NotACall
                break
        if not has_begun:
            raise NotACall
        self._commit()
        if not has_arguments:
            self._arguments("{}")

    def _json_arguments(self) -> Steps[None]:
        """The arguments of a call that has begun, as they come; text in quotes is the arguments' JSON quoted."""
        self._commit()
        if (yield from self._peek()) == '"':
            try:
                self._arguments(_object((yield from self._json_string(is_limited=False))))
            except NotACall:  # the answer ends inside it, or it is not JSON
                self._at = len(self._text) if self._is_over else self._at
                self._arguments(_unquoted(self._commit()))
            else:
                self._commit()
            return
        if (yield from self._accept("null")) and _ends_value((yield from self._peek())):
            self._commit()
            self._arguments("{}")
            return
        if not (yield from self._value(lambda: self._arguments(self._commit()))):
            raise NotACall

    def _held_value(self, *, is_limited: bool = True) -> Steps[str]:
        """A JSON value, looked at and not done with; unquoted if it is a string of JSON."""
        before = self._at - self._start
        if (yield from self._peek()) == '"':
            return (yield from self._json_string(is_limited=is_limited))
        if not (yield from self._value(self._check_held if is_limited else lambda: None)):
            raise NotACall
        return self._text[self._start + before : self._at]

    def _check_held(self) -> None:
        if self._at - self._start > MAX_HELD:
            raise NotACall

    def _value(self, on_progress: Callable[[], object]) -> Steps[bool]:
        """Goes over a JSON value that is no string; calls `on_progress` on the way. False: the answer ends inside.

        Brackets and strings are all it looks at: what a model writes between them is the client's to judge."""
        if (yield from self._peek()) not in ("{", "["):
            return (yield from self._scalar(on_progress))
        depth, in_string = 0, False
        while True:
            found = (_IN_STRING if in_string else _OUTSIDE).search(self._text, self._at)
            if found is None:
                self._at = len(self._text)
                on_progress()
                if not (yield from self._more()):
                    return False
                continue
            self._at = found.end()
            match found.group():
                case '"':
                    in_string = not in_string
                case "\\":
                    if not (yield from self._peek()):
                        on_progress()
                        return False
                    self._at += 1
                case "{" | "[":
                    depth += 1
                case _:
                    depth -= 1
                    if not depth:
                        on_progress()
                        return True

    def _scalar(self, on_progress: Callable[[], object]) -> Steps[bool]:
        """A number, true, false or null: what there is up to the next mark of JSON."""
        is_empty = True
        while True:
            match = _SCALAR.match(self._text, self._at)
            assert match is not None
            is_empty = is_empty and not match.group()
            self._at = match.end()
            on_progress()
            if self._at < len(self._text):
                return not is_empty
            if not (yield from self._more()):
                return False

    def _json_string(self, *, is_limited: bool = True) -> Steps[str]:
        """A JSON string's content. Raises NotACall when there is none."""
        if not (yield from self._accept('"')):
            raise NotACall
        before = self._at - self._start
        while True:
            found = _IN_STRING.search(self._text, self._at)
            if found is None:
                self._at = len(self._text)
                if is_limited:
                    self._check_held()
                if not (yield from self._more()):
                    raise NotACall
                continue
            self._at = found.end()
            if found.group() == '"':
                break
            if not (yield from self._peek()):
                raise NotACall
            self._at += 1
        try:
            return _decode_string(f'"{self._text[self._start + before : self._at]}')
        except msgspec.DecodeError:
            raise NotACall from None

    def _name_until(self, *ends: str) -> Steps[tuple[str, str]]:
        """(name, what ended it): a name that stands by itself, without quotes."""
        markers = Markers(*ends)
        before = self._at - self._start
        while True:
            found = markers.find(self._text, self._at)
            here = found.start() if found else markers.held_from(self._text, self._at)
            self._at = here
            name = self._text[self._start + before : here].strip()
            if len(name) > MAX_NAME or any(mark in SPACE for mark in name):
                raise NotACall
            if found is not None:
                if not name:
                    raise NotACall
                self._at = found.end()
                return name, found.group()
            if not (yield from self._more()):
                self._at = len(self._text)
                raise NotACall


def _ends_value(mark: str) -> bool:
    """Whether a scalar is over where this character, or the answer's end, follows it."""
    return not mark or _SCALAR.fullmatch(mark) is None


def _object(arguments: str) -> str:
    return "{}" if arguments.strip() in _NO_ARGUMENTS else arguments


def _unquoted(text: str) -> str:
    """What there is of a string that was cut; as it is when it was no string."""
    try:
        return _decode_string(_CUT_ESCAPE.sub("", text) + '"')
    except msgspec.DecodeError:
        return text
