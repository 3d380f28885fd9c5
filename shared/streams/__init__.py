"""The only package that speaks Redis streams: names, encoding, sending, reading, acknowledging.

A stream (`names.py`) pairs a name with the union of messages it carries. An entry (`entries.py`) that does not
decode goes to `<stream>.dead` and is acknowledged; left pending, it would come back for ever.

Sending is synchronous (`outbox.py`) and one task writes what has gathered in one round trip, in order: so a
step's messages to several addressees cost one pipeline, and nothing on the hot path awaits the broker.
Delivery is at least once: a connection that breaks during a write makes the batch go again, and receivers
drop what they have (by sequence id and index, or by plan number).
"""

from shared.streams.broker import LOST_CONNECTION, Wire, backoff, connect, persistently, wait_for_broker
from shared.streams.bus import Bus
from shared.streams.entries import Delivery, Stream, order_of
from shared.streams.names import (
    EVENTS,
    SCHEDULE,
    TOKENIZE,
    FromWorker,
    ToGateway,
    ToScheduler,
    ToShard,
    control_stream,
    plan_stream,
    reply_stream,
    shard_stream,
)

__all__ = [
    "EVENTS",
    "LOST_CONNECTION",
    "SCHEDULE",
    "TOKENIZE",
    "Bus",
    "Delivery",
    "FromWorker",
    "Stream",
    "ToGateway",
    "ToScheduler",
    "ToShard",
    "Wire",
    "backoff",
    "connect",
    "control_stream",
    "order_of",
    "persistently",
    "plan_stream",
    "reply_stream",
    "shard_stream",
    "wait_for_broker",
]
