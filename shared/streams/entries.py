"""Entries of streams: a message and what travels beside it, as fields.

`m` is the body (msgpack), `v` the protocol's version, and if set `t` a W3C traceparent and `d` a deadline (unix
seconds).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from shared.messages import PROTOCOL_VERSION

M = TypeVar("M", bound=msgspec.Struct)
Fields = Mapping[bytes, bytes]
Entry = tuple[bytes, bytes, Fields]
"""The stream's key, the entry's id, its fields."""

encoder = msgspec.msgpack.Encoder()


class Stream(Generic[M]):
    """A stream's name (without the deployment's prefix) and what it carries. `M` is the union's alias.

    repeats: what the broker may have lost is written again, late, in front of what follows. Not where that would tell a
    new reader of what is past, or ask for the same work again."""

    def __init__(self, name: str, union: Any, group: str | None = None, *, repeats: bool = True) -> None:
        self.name = name
        self.group = group
        self.repeats = repeats
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(union)

    def decode(self, body: bytes) -> M:
        """Raises msgspec.DecodeError on bytes that are none of the union's messages."""
        return self._decoder.decode(body)


@dataclass(frozen=True, slots=True)
class Delivery(Generic[M]):
    """A message as read. entry_id: its id in the stream, `ms-n`."""

    stream: Stream[M]
    entry_id: str
    message: M
    traceparent: str | None = None
    deadline: float | None = None


def delivery_of(stream: Stream[M], entry_id: bytes, fields: Fields) -> Delivery[M]:
    """An entry as it was sent. Raises one of UNREADABLE for what is none."""
    if int(fields[b"v"]) != PROTOCOL_VERSION:
        raise ValueError(f"protocol version {fields[b'v']!r}, this process speaks {PROTOCOL_VERSION}")
    deadline = float(fields[b"d"]) if fields.get(b"d") else None
    if deadline is not None and not math.isfinite(deadline):
        raise ValueError(f"deadline {deadline}")
    trace = fields.get(b"t")
    return Delivery(
        stream, entry_id.decode(), stream.decode(fields[b"m"]), trace.decode("ascii") if trace else None, deadline
    )


UNREADABLE = (KeyError, ValueError, msgspec.DecodeError, RecursionError)


def fields_of(message: msgspec.Struct, traceparent: str | None, deadline: float | None) -> list[bytes | str | int]:
    """An entry's fields and their values in turn."""
    fields: list[bytes | str | int] = ["v", PROTOCOL_VERSION, "m", encoder.encode(message)]
    if traceparent is not None:
        fields += ["t", traceparent]
    if deadline is not None:
        fields += ["d", repr(deadline)]
    return fields


def raw_entries(reply: Any) -> list[Entry]:
    """(key, entry id, fields) in order, from the reply of XREAD or XREADGROUP as it came over the wire: RESP2's list or
    RESP3's map, with flat fields."""
    if not reply:
        return []
    return [
        (key, entry_id, dict(zip(fields[::2], fields[1::2], strict=True)))
        for key, entries in (reply.items() if isinstance(reply, dict) else reply)
        for entry_id, fields in entries
        if fields
    ]


def family(stream: Stream[Any]) -> str:
    """The stream's name without its addressee: a metric label of few values."""
    return stream.name.partition(":")[0]


def order_of(entry_id: str) -> tuple[int, int]:
    """Entry ids as they compare."""
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number or 0)
