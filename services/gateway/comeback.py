"""What a request says of an earlier one: `Idempotency-Key` (the same request again) and `Last-Event-ID` (the rest of
its stream). Pure.
"""

import re
from dataclasses import dataclass

from multidict import CIMultiDictProxy

from services.gateway import event_id
from services.gateway.answers import Numbering
from services.gateway.call import Call
from services.gateway.event_id import EventId, Place
from services.gateway.record import Record
from shared.errors import Conflict, InvalidRequest

IDEMPOTENCY_KEY = "Idempotency-Key"
LAST_EVENT_ID = "Last-Event-ID"
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True, slots=True)
class Comeback:
    """idempotency_key: empty without one. last_event: the last that the client has; None: it has none."""

    idempotency_key: str
    last_event: EventId | None


def read(headers: CIMultiDictProxy[str]) -> Comeback:
    """Raises InvalidRequest for headers that are malformed."""
    key = headers.get(IDEMPOTENCY_KEY, "").strip()
    if IDEMPOTENCY_KEY in headers and not _KEY.fullmatch(key):
        raise InvalidRequest(
            f"The header {IDEMPOTENCY_KEY} must be 1 to 255 printable ASCII characters without spaces.",
            param=IDEMPOTENCY_KEY,
        )
    return Comeback(key, last_event(headers))


def last_event(headers: CIMultiDictProxy[str]) -> EventId | None:
    text = headers.get(LAST_EVENT_ID, "").strip()
    if not text:
        return None  # clients send an empty one before they have had any
    try:
        return event_id.parse(text)
    except ValueError as error:
        raise InvalidRequest(f"The header {LAST_EVENT_ID} is {error}.", param=LAST_EVENT_ID) from None


def check_same(one: Record, digest: bytes) -> None:
    """Raises Conflict for a request that is another than the one it says it repeats."""
    if one.digest != digest:
        raise Conflict(
            "A request with this key had another URL or body. Send the same bytes, or use a new key.",
            param=IDEMPOTENCY_KEY,
        )


def numbering_of(call: Call, after: EventId | None) -> Numbering | None:
    """Ids for a kept stream's events, from the event that its reader had last; the call leaves out what came up to
    then. None: of too many choices. Raises InvalidRequest when the event is none of this answer's."""
    if len(call.choices) > event_id.MAX_CHOICES:
        return None
    if after is None:
        return Numbering(call.id, [Place()] * len(call.choices))
    if after.answer_id != call.id or len(after.places) != len(call.choices):
        raise InvalidRequest(f"The header {LAST_EVENT_ID} is no event of this answer.", param=LAST_EVENT_ID)
    for choice, place in zip(call.choices, after.places, strict=True):
        choice.skipped = place.num_characters
    return Numbering(call.id, after.places, after.has_usage)
