"""One answer's reader: reasoning first, then text and tool calls."""

from services.tokenizer.tools import reasoning
from services.tokenizer.tools.formats import FORMATS
from services.tokenizer.tools.reader import Piece
from services.tokenizer.tools.reasoning import ReasoningReader
from shared.messages import AnswerFormat, Channel


class AnswerReader:
    """Takes an answer's text in pieces of any size; gives the same pieces joined for any of them.

    Raises ValueError for a form that this process does not know: another version of it wrote that."""

    __slots__ = ("_calls", "_keeps_reasoning", "_reasoning")

    def __init__(self, form: AnswerFormat) -> None:
        if form.tool_parser not in ("", *FORMATS) or form.reasoning_parser not in ("", *reasoning.FORMATS):
            raise ValueError(f"unknown form of an answer: {form}")
        self._calls = FORMATS[form.tool_parser].reader(form.tool_names) if form.tool_parser else None
        self._reasoning = (
            ReasoningReader(
                reasoning.FORMATS[form.reasoning_parser],
                is_reasoning=form.is_reasoning,
                is_verbatim=form.keeps_reasoning,
            )
            if form.reasoning_parser
            else None
        )

        self._keeps_reasoning = form.keeps_reasoning

    @property
    def is_reasoning(self) -> bool:
        """Whether what comes next is reasoning, as far as is known; never where that is content."""
        return self._reasoning is not None and not self._keeps_reasoning and self._reasoning.is_reasoning

    def push(self, text: str) -> list[Piece]:
        if self._reasoning is None:
            return self._read([Piece(Channel.CONTENT, 0, text)])
        return self._read(self._reasoning.push(text))

    def flush(self) -> list[Piece]:
        """What was held; for the answer's end."""
        pieces = [] if self._reasoning is None else self._read(self._reasoning.flush())
        return pieces if self._calls is None else pieces + self._calls.flush()

    def _read(self, pieces: list[Piece]) -> list[Piece]:
        if self._calls is None:
            return pieces
        read: list[Piece] = []
        for piece in pieces:
            if piece.channel is Channel.CONTENT:
                read += self._calls.push(piece.text)
            else:
                read.append(piece._replace(channel=Channel.CONTENT) if self._keeps_reasoning else piece)
        return read
