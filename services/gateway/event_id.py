"""Ids of server-sent events: how much of an answer its reader has, in a form that any gateway understands. Pure.

`ANSWER:PLACE,PLACE...`, one place a choice: `-` nothing yet, `12` the first twelve characters of its text (reasoning
and tool calls included), `12e` all of it and its end. A last `u`: the usage too. An id says where to go on by itself,
so it does not matter how the text was cut into events, or by whom.
"""

import re
from dataclasses import dataclass

MAX_CHOICES = 16
"""Streams of more choices carry no ids: an id would be longer than its event."""

MAX_LENGTH = 400
ANSWER_ID = r"(?:chatcmpl|cmpl)-[0-9a-f]{32}"
_PLACE = r"(?:-|[0-9]{1,9}e?)"
EVENT_ID = rf"({ANSWER_ID}):({_PLACE}(?:,{_PLACE}){{0,{MAX_CHOICES - 1}}})(u?)"
_FORM = re.compile(EVENT_ID, re.ASCII)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a reader is in a choice. is_begun: it has had an event of it; num_characters: of its text; has_end: it
    knows why the choice ended."""

    is_begun: bool = False
    num_characters: int = 0
    has_end: bool = False

    def __str__(self) -> str:
        return f"{self.num_characters}{'e' if self.has_end else ''}" if self.is_begun else "-"


@dataclass(frozen=True, slots=True)
class EventId:
    """answer_id: of the answer, as in its chunks. places: one a choice."""

    answer_id: str
    places: tuple[Place, ...]
    has_usage: bool = False

    def __str__(self) -> str:
        return f"{self.answer_id}:{','.join(map(str, self.places))}{'u' if self.has_usage else ''}"


def parse(text: str) -> EventId:
    """Raises ValueError for what is no event id."""
    form = _FORM.fullmatch(text) if len(text) <= MAX_LENGTH else None
    if form is None:
        raise ValueError("not an event id of this server")
    answer_id, places, usage = form.groups()
    return EventId(answer_id, tuple(_place(one) for one in places.split(",")), bool(usage))


def _place(text: str) -> Place:
    if text == "-":
        return Place()
    return Place(is_begun=True, num_characters=int(text.removesuffix("e")), has_end=text.endswith("e"))
