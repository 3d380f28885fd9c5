"""Calls as Hermes and Qwen write them: <tool_call>{"name": ..., "arguments": {...}}</tool_call>, one or a list each."""

from services.tokenizer.tools.calls import CallReader
from services.tokenizer.tools.reader import Markers, Steps

BEGIN, END = "<tool_call>", "</tool_call>"


class HermesReader(CallReader):
    """The marks may be special tokens or plain text."""

    _markers = Markers(BEGIN)

    def _call(self, marker: str) -> Steps[None]:
        yield from self._json_calls(bool)
        yield from self._close(END)
