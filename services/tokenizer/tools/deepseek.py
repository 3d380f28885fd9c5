"""Calls as DeepSeek's models write them, between special tokens.

V3 and R1: begin, `function`, separator, the name, a line break and the arguments as a fenced block of JSON, end. V3.1:
begin, the name, separator, the arguments, end. Marks around all of the calls may be missing.
"""

from services.tokenizer.tools.calls import MAX_NAME, CallReader, NotACall
from services.tokenizer.tools.reader import SPACE, Markers, Steps

CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
SEPARATOR = "<｜tool▁sep｜>"
FENCE = "```"


class DeepSeekReader(CallReader):
    """Both forms, told apart by what follows the separator."""

    _markers = Markers(CALLS_BEGIN, CALL_BEGIN, CALLS_END)

    def _call(self, marker: str) -> Steps[None]:
        if marker == CALLS_END:
            if self.num_calls:
                self._commit()
            return
        if marker == CALLS_BEGIN:
            yield from self._skip_space()
            if not (yield from self._accept(CALL_BEGIN)):
                raise NotACall
        name, _ = yield from self._name_until(SEPARATOR)
        yield from self._skip_space()
        is_fenced = (yield from self._peek()) != "{"
        if is_fenced:
            name = yield from self._line()
            yield from self._skip_space()
            if not (yield from self._accept(FENCE + "json")):
                raise NotACall
            yield from self._skip_space()
            if (yield from self._peek()) != "{":
                raise NotACall
        self._begin(name)
        yield from self._json_arguments()
        if is_fenced:
            yield from self._close(FENCE)
        yield from self._close(CALL_END)

    def _line(self) -> Steps[str]:
        """The rest of the line, a name."""
        before = self._at - self._start
        while (mark := (yield from self._peek())) not in ("", "\n"):
            self._at += 1
            if self._at - self._start - before > MAX_NAME:
                raise NotACall
        name = self._text[self._start + before : self._at].strip()
        if not mark or not name or any(space in SPACE for space in name):
            raise NotACall
        return name
