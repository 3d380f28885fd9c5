"""Calls as Mistral's models write them.

Older ones: [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]. Newer ones, for each call:
[TOOL_CALLS]name[ARGS]{...}, with [CALL_ID]id between the two or [ARGS] left out.
"""

from services.tokenizer.tools.calls import CallReader, NotACall
from services.tokenizer.tools.reader import Markers, Steps

TOOL_CALLS, CALL_ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"


class MistralReader(CallReader):
    """The marks are special tokens."""

    _markers = Markers(TOOL_CALLS)

    def _call(self, marker: str) -> Steps[None]:
        yield from self._skip_space()
        if (yield from self._peek()) in ("[", "{"):
            yield from self._json_calls(bool)
            return
        name, end = yield from self._name_until(ARGS, CALL_ID, "{")
        if end == CALL_ID:
            yield from self._name_until(ARGS)
        if end == "{":
            self._at -= 1
        else:
            yield from self._skip_space()
        if (yield from self._peek()) != "{":
            raise NotACall
        self._begin(name)
        yield from self._json_arguments()
