"""Calls as Hermes and Qwen write them: <tool_call>{"name": ..., "arguments": {...}}</tool_call>, one or a list each."""

from services.tokenizer.tools.calls import CallReader, NotACall
from services.tokenizer.tools.reader import SPACE, Markers, Steps

BEGIN, END = "<tool_call>", "</tool_call>"


_BETWEEN = SPACE + "}],"
"""What may stand between a call and the next one or the end mark, in excess or for lists without brackets."""


class HermesReader(CallReader):
    """The marks may be special tokens or plain text.

    Models miscount braces and put several objects between two marks: from the first call on, all of that is markup."""

    _markers = Markers(BEGIN)

    def _call(self, marker: str) -> Steps[None]:
        yield from self._objects()
        while (yield from self._next()) == "{":
            yield from self._objects()
        yield from self._close(END)

    def _objects(self) -> Steps[None]:
        """A call object or a list of them, one of which may lack its last brace."""
        before = self.num_calls
        try:
            yield from self._json_calls(bool)
        except NotACall:
            if self.num_calls == before or self._is_over:
                raise

    def _next(self) -> Steps[str]:
        """Goes over what may stand between calls; returns the character behind it, empty at the answer's end."""
        while (mark := (yield from self._peek())) and mark in _BETWEEN:
            self._at += 1
            self._check_held()
        return mark
