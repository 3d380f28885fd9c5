"""Reading an answer as it comes: what is certain goes out at once, what may become something else is held.

A reader is a generator over the answer's text that waits wherever it needs more of it. It looks at characters, never
at how they came, so an answer gives the same pieces joined however it was cut.
"""

import re
from collections.abc import Generator, Sequence
from typing import NamedTuple, TypeVar

from shared.messages import Channel

T = TypeVar("T")
Steps = Generator[None, None, T]
"""Work that waits for more text whenever it yields."""

SPACE = " \t\r\n"
_SPACE = re.compile(r"[ \t\r\n]*")


class Piece(NamedTuple):
    """A part of an answer. call: which tool call a name or arguments belong to."""

    channel: Channel
    call: int
    text: str


class TextReader:
    """The text of one answer, and the generator `_read` that goes over it.

    _text[:_start] is done with, _text[_start:_at] is looked at and may yet be anything."""

    def __init__(self) -> None:
        self._text = ""
        self._start = 0
        self._at = 0
        self._is_over = False
        self._pieces: list[Piece] = []
        self._steps = self._read()
        next(self._steps, None)

    def push(self, text: str) -> list[Piece]:
        """The next characters of the answer; returns what they make certain."""
        self._text = self._text[self._start :] + text
        self._at -= self._start
        self._start = 0
        next(self._steps, None)
        return self._take()

    def flush(self) -> list[Piece]:
        """The answer is over; returns what was held."""
        self._is_over = True
        next(self._steps, None)
        return self._take()

    def _read(self) -> Steps[None]:
        raise NotImplementedError

    def _take(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def _emit(self, channel: Channel, text: str, call: int = 0) -> None:
        if text:
            self._pieces.append(Piece(channel, call, text))

    def _commit(self) -> str:
        """What was looked at is done with; returns it."""
        text = self._text[self._start : self._at]
        self._start = self._at
        return text

    def _more(self) -> Steps[bool]:
        """Waits for text; False when no more can come."""
        if self._is_over:
            return False
        yield
        return True

    def _peek(self) -> Steps[str]:
        """The next character; empty at the answer's end."""
        while self._at >= len(self._text):
            if not (yield from self._more()):
                return ""
        return self._text[self._at]

    def _accept(self, literal: str) -> Steps[bool]:
        """Goes over `literal` if that comes next."""
        while True:
            there = self._text[self._at : self._at + len(literal)]
            if there == literal:
                self._at += len(literal)
                return True
            if not literal.startswith(there) or not (yield from self._more()):
                return False

    def _skip_space(self) -> Steps[None]:
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._text) or not (yield from self._more()):
                return


class Markers:
    """Texts to look for, and how much of a text's end may be the start of one."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self._longest = max(map(len, texts))
        self._pattern = re.compile("|".join(map(re.escape, texts)))

    def find(self, text: str, start: int) -> "re.Match[str] | None":
        return self._pattern.search(text, start)

    def held_from(self, text: str, start: int) -> int:
        """Where the longest end of `text` begins that may become one of them."""
        for place in range(max(start, len(text) - self._longest + 1), len(text)):
            rest = text[place:]
            if any(marker.startswith(rest) for marker in self.texts):
                return place
        return len(text)


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces with neighbours of one kind made one; a call's name stays as it is."""
    merged: list[Piece] = []
    run: list[str] = []
    for piece in pieces:
        if run and merged[-1][:2] == piece[:2]:
            run.append(piece.text)
            continue
        if len(run) > 1:
            merged[-1] = merged[-1]._replace(text="".join(run))
        merged.append(piece)
        run = [piece.text]
    if len(run) > 1:
        merged[-1] = merged[-1]._replace(text="".join(run))
    return merged
