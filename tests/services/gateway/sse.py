"""Server-sent events as a client reads them, and what they say in all."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec


@dataclass(frozen=True, slots=True)
class Event:
    """id: empty without one."""

    id: str
    data: str


def split(stream: bytes) -> list[Event]:
    blocks = stream.decode().split("\n\n")
    assert blocks[-1] == "", "the stream ends inside an event"
    return [_event(block) for block in blocks[:-1]]


def _event(block: str) -> Event:
    fields = dict(line.split(": ", 1) for line in block.split("\n"))
    assert fields.keys() <= {"id", "data"}
    return Event(fields.get("id", ""), fields["data"])


def said_of(events: Iterable[Event]) -> dict[Any, Any]:
    """Everything the events say, joined: a thing that is said twice, or left out, shows."""
    said: dict[Any, Any] = {"usage": [], "errors": [], "done": 0}
    for event in events:
        if event.data == "[DONE]":
            said["done"] += 1
            continue
        chunk = msgspec.json.decode(event.data)
        if "error" in chunk:
            said["errors"].append(chunk["error"]["message"])
            continue
        if chunk.get("usage"):
            said["usage"].append(chunk["usage"])
        for choice in chunk["choices"]:
            _add(said, choice)
    return said


def _add(said: dict[Any, Any], choice: dict[str, Any]) -> None:
    delta, index = choice.get("delta", {}), choice["index"]
    for key, text in (
        ((index, "text"), choice.get("text")),
        ((index, "role"), delta.get("role")),
        ((index, "content"), delta.get("content")),
        ((index, "reasoning"), delta.get("reasoning_content")),
        ((index, "finish"), choice["finish_reason"]),
    ):
        if text:
            said[key] = said.get(key, "") + text
    for call in delta.get("tool_calls", ()):
        key = (index, "call", call["index"])
        function = call["function"]
        name = f"{call['id']} {function['name']}: " if "id" in call else ""
        said[key] = said.get(key, "") + name + function["arguments"]


def text_of(events: Sequence[Event], choice: int = 0) -> str:
    said = said_of(events)
    return str(said.get((choice, "content"), "") or said.get((choice, "text"), ""))
