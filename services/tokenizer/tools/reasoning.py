"""What a model thinks before it answers: <think> ... </think> at the beginning of an answer, or up to </think> where
the prompt has opened it.

White space next to the marks belongs to neither side. Without a mark all of the answer is text, as it stands.
"""

from dataclasses import dataclass

from services.tokenizer.tools.reader import Markers, Steps, TextReader
from shared.messages import Channel


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """A way to mark reasoning."""

    name: str
    begin: str
    end: str


FORMATS = {
    known.name: known
    for known in (
        ReasoningFormat("think", "<think>", "</think>"),
        ReasoningFormat("mistral", "[THINK]", "[/THINK]"),
    )
}


class ReasoningReader(TextReader):
    """Splits an answer in reasoning and the rest, which it gives out as content.

    is_reasoning: whether the next character is the model's thinking, as far as is known. is_verbatim: reasoning has its
    marks and all white space, and is given out joined with the rest what the model wrote."""

    def __init__(self, marks: ReasoningFormat, *, is_reasoning: bool, is_verbatim: bool = False) -> None:
        self._is_verbatim = is_verbatim
        self._marks = marks
        self._end = Markers(marks.end)
        self.is_reasoning = is_reasoning
        super().__init__()

    def _read(self) -> Steps[None]:
        if not self.is_reasoning:
            yield from self._skip_space()
            self.is_reasoning = yield from self._accept(self._marks.begin)
        if self.is_reasoning and self._is_verbatim:
            yield from self._with_marks()
        elif self.is_reasoning:
            self._commit()
            yield from self._skip_space()
            self._commit()
            yield from self._until_end()
        self.is_reasoning = False
        while True:
            self._at = len(self._text)
            self._emit(Channel.CONTENT, self._commit())
            if not (yield from self._more()):
                return

    def _with_marks(self) -> Steps[None]:
        while True:
            found = self._end.find(self._text, self._at)
            self._at = found.end() if found else self._end.held_from(self._text, self._at)
            self._emit(Channel.REASONING, self._commit())
            if found:
                return
            if not (yield from self._more()):
                self._at = len(self._text)
                self._emit(Channel.REASONING, self._commit())
                return

    def _until_end(self) -> Steps[None]:
        space = ""
        while True:
            found = self._end.find(self._text, self._at)
            self._at = found.start() if found else self._end.held_from(self._text, self._at)
            text = self._commit()
            thought = text.rstrip()
            if thought:
                self._emit(Channel.REASONING, space + thought)
                space = ""
            space += text[len(thought) :]
            if found:
                self._at = found.end()
                self.is_reasoning = False
                yield from self._skip_space()
                self._commit()
                return
            if not (yield from self._more()):
                self._at = len(self._text)
                if rest := self._commit():  # the beginning of the end mark: the answer was cut there
                    self._emit(Channel.REASONING, space + rest)
                return
