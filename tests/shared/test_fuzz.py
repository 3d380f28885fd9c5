"""Any bytes in a stream, in the registry or in a setting: a message, a dead letter, or an error that names the fault.

SAPWOOD_FUZZ_CASES is how many cases each test tries; the default is an everyday one."""

import logging
import math
import os
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shared.messages
from services.gateway.config import Settings as GatewaySettings
from services.gpu_worker.config import Settings as WorkerSettings
from services.scheduler.config import Settings as SchedulerSettings
from services.tokenizer.config import Settings as TokenizerSettings
from shared import streams
from shared.errors import ConfigError, ErrorBody
from shared.ledger import Ledger, WorkerLedger
from shared.messages import (
    Abort,
    Admit,
    ChatPrompt,
    Constraint,
    Deltas,
    Died,
    Drop,
    Fence,
    Generate,
    Goodbye,
    Grant,
    Hello,
    Holdings,
    Instance,
    Open,
    Output,
    Plan,
    Profile,
    Progress,
    Rejected,
    Retract,
    TextPrompt,
    Tokenize,
    TokenPrompt,
)
from shared.packing import unpack_i32, unpack_i64
from shared.settings import from_values
from shared.streams import Bus, Stream, connect

CASES = int(os.environ.get("SAPWOOD_FUZZ_CASES", "150"))
FUZZ = settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))

STREAMS: list[Stream[Any]] = [
    streams.TOKENIZE,
    streams.SCHEDULE,
    streams.EVENTS,
    streams.plan_stream("w"),
    streams.control_stream("w"),
    streams.shard_stream(0),
    streams.reply_stream("g"),
]
MESSAGES = (
    *(
        Tokenize,
        TokenPrompt,
        TextPrompt,
        ChatPrompt,
        Constraint,
        Generate,
        Abort,
        Open,
        Output,
        Fence,
        Deltas,
        Rejected,
    ),
    *(Plan, Admit, Grant, Drop, Retract, Profile, Hello, Progress, Holdings, Died, Goodbye, ErrorBody),
)
encode = msgspec.msgpack.encode
objects = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
plain_objects = st.dictionaries(st.text(max_size=3), st.none() | st.integers(-9, 9) | st.text(max_size=3), max_size=3)


def any_of(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Messages of a kind, with every field of its type."""
    by_type: dict[object, st.SearchStrategy[Any]] = {
        dict[str, object]: plain_objects,
        list[dict[str, object]]: st.lists(plain_objects, max_size=2),
        list[dict[str, object]] | None: st.none() | st.lists(plain_objects, max_size=2),
        int: st.integers(-(2**63), 2**63 - 1),
    }
    fields = msgspec.structs.fields(kind)
    return st.builds(
        kind, **{one.name: by_type[one.type] if one.type in by_type else st.from_type(one.type) for one in fields}
    )


for struct in vars(shared.messages).values():
    if isinstance(struct, type) and issubclass(struct, msgspec.Struct):
        st.register_type_strategy(struct, any_of)


def encode_if_it_can_be(message: msgspec.Struct) -> bytes:
    """Nothing of a message with a number that has no 64 bits."""
    try:
        return encode(message)
    except OverflowError:
        return b""


messages = st.sampled_from(MESSAGES).flatmap(any_of).map(encode_if_it_can_be)
tagged = st.builds(
    lambda kind, fields: encode([kind.__name__, *fields]), st.sampled_from(MESSAGES), st.lists(objects, max_size=9)
)


def damaged(body: bytes, place: int, piece: bytes, is_put_in: bool) -> bytes:
    place %= len(body) + 1
    return body[:place] + piece + body[place + (0 if is_put_in else len(piece)) :]


bodies = (
    messages
    | tagged
    | st.binary(max_size=60)
    | objects.map(encode)
    | st.builds(damaged, messages | tagged, st.integers(0, 10**4), st.binary(max_size=3), st.booleans())
    | st.integers(1, 3000).map(lambda depth: b"\x91" * depth)
    | st.builds(lambda size: b"\xdd" + size.to_bytes(4, "big"), st.integers(0, 2**32 - 1))
)
entries = st.fixed_dictionaries(
    {},
    optional={
        b"v": st.sampled_from([b"1", b"1", b"1", b"2", b"", b"x", b"9" * 5000]) | st.binary(max_size=4),
        b"m": bodies,
        b"t": st.just(b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01") | st.binary(max_size=60),
        b"d": st.sampled_from([b"1", b"nan", b"inf", b"1e400", b"-1", b""]) | st.binary(max_size=9),
        b"x": st.binary(max_size=3),
    },
)


@pytest.fixture(scope="module")
def quiet_bus() -> Iterator[Bus]:
    """A bus that is never connected and writes no log."""
    logging.getLogger("shared.streams.bus").disabled = True
    yield Bus(connect("unix:///nowhere"), "fuzz")
    logging.getLogger("shared.streams.bus").disabled = False


@FUZZ
@given(st.sampled_from(STREAMS), entries)
def test_an_entry_is_a_message_or_a_dead_letter(
    quiet_bus: Bus, stream: Stream[Any], fields: dict[bytes, bytes]
) -> None:
    buried = quiet_bus.outbox.backlog
    deliveries = quiet_bus.deliveries({b"k": stream}, [(b"k", b"1-0", fields)])
    if not deliveries:
        assert quiet_bus.outbox.backlog > buried
        quiet_bus.outbox._commands.clear()
        return
    (delivery,) = deliveries
    again = encode(delivery.message)
    assert encode(stream.decode(again)) == again  # as bytes, for a NaN equals nothing
    assert delivery.deadline is None or math.isfinite(delivery.deadline)
    assert delivery.traceparent is None or delivery.traceparent.isascii()


@FUZZ
@given(st.binary(max_size=70))
def test_packed_numbers_are_whole_or_refused(data: bytes) -> None:
    for size, unpack in ((4, unpack_i32), (8, unpack_i64)):
        if len(data) % size:
            with pytest.raises(ValueError, match="not a multiple"):
                unpack(data)
        else:
            assert unpack(data).tobytes() == data


@FUZZ
@given(
    st.sampled_from([Instance, Ledger, WorkerLedger]),
    st.binary(max_size=60) | st.dictionaries(st.text(max_size=8), objects, max_size=5).map(msgspec.json.encode),
)
def test_what_processes_say_of_themselves_is_read_or_refused(kind: type[msgspec.Struct], said: bytes) -> None:
    try:
        one = msgspec.json.decode(said, type=kind)
    except (msgspec.DecodeError, RecursionError):
        return
    assert isinstance(one, kind)


numbers = (
    st.integers(-5, 10**6).map(str) | st.floats().map(str) | st.sampled_from(["1e999", "0x1", "", "9" * 5000, "-0"])
)
texts = st.text(max_size=20) | st.sampled_from(["true", "false", "1", "0", "auto", "none", "\x00", "redis://h"])


@FUZZ
@given(st.sampled_from([GatewaySettings, TokenizerSettings, SchedulerSettings, WorkerSettings]), st.data())
def test_settings_are_of_their_types_or_refused_by_name(kind: type[msgspec.Struct], data: st.DataObject) -> None:
    fields = msgspec.structs.fields(kind)
    names = data.draw(st.lists(st.sampled_from([field.name for field in fields]), max_size=4, unique=True))
    values = {name: data.draw(numbers | texts) for name in names}
    required = {field.name: "m" for field in fields if field.required}
    env = {f"SAPWOOD_{name.upper()}": value for name, value in {**required, **values}.items()}
    said = ""
    try:
        loaded = from_values(kind, {}, env)
    except ConfigError as error:
        said = str(error)
    if said:
        assert any(f"SAPWOOD_{name.upper()}" in said for name in names)
    elif not any("nan" in value.lower() for value in values.values()):
        assert msgspec.convert(msgspec.to_builtins(loaded), kind) == loaded
