"""Calls as bare JSON: {"name": ..., "arguments" or "parameters": {...}}; several in a list, one a line or after `;`.

Llama 3 may put <|python_tag|> before them. Nothing else marks such a call, so the name must be one of the request's
tools, and objects inside of other JSON are not looked at.
"""

from services.tokenizer.tools.calls import ARGUMENT_KEYS, NAME_KEYS, CallReader, NotACall
from services.tokenizer.tools.reader import Markers, Steps

PYTHON_TAG = "<|python_tag|>"


class JsonReader(CallReader):
    """Calls anywhere in the text."""

    _markers = Markers("{", "[", PYTHON_TAG)
    _keys = NAME_KEYS | ARGUMENT_KEYS | {"type", "id"}

    def _call(self, marker: str) -> Steps[None]:
        if marker != PYTHON_TAG:
            if self._last.endswith(("{", "[", ",", '":')):
                raise NotACall
            self._at -= len(marker)
        yield from self._json_calls(self._tool_names.__contains__)
        while True:
            yield from self._skip_space()
            if (yield from self._accept(";")) or (yield from self._accept(",")):
                yield from self._skip_space()
            if (yield from self._peek()) not in ("{", "["):
                return
            yield from self._json_calls(self._tool_names.__contains__)


EXACT_BEGIN = '{"name": "'


class ExactJsonReader(CallReader):
    """Only calls spelled as a grammar that looks out for them has them; what it lets through as text stays text."""

    _markers = Markers(EXACT_BEGIN)
    _keys = NAME_KEYS

    def _call(self, marker: str) -> Steps[None]:
        self._at -= len(marker)
        yield from self._json_calls(self._tool_names.__contains__)
