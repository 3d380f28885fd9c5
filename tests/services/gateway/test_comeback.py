"""Event ids: from any event on, another reader gets exactly the rest, however the text was cut the first time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from services.gateway import comeback, event_id, record
from services.gateway.answers import CHAT, COMPLETION, Events, Numbering, Shape
from services.gateway.call import Call
from services.gateway.event_id import EventId, Place
from services.gateway.record import Record, Terms
from shared.errors import InvalidRequest
from shared.messages import Channel, Delta, Finished, FinishReason
from tests.services.gateway.sse import Event, said_of, split

ANSWER = "chatcmpl-" + "0" * 32


def headers(**given: str) -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(CIMultiDict({name.replace("_", "-"): value for name, value in given.items()}))


places = st.builds(
    lambda begun, num, end: Place(begun, num if begun else 0, end and begun),
    st.booleans(),
    st.integers(0, 10**9 - 1),
    st.booleans(),
)


@given(st.lists(places, min_size=1, max_size=event_id.MAX_CHOICES).map(tuple), st.booleans())
def test_ids_come_back_as_they_were(where: tuple[Place, ...], has_usage: bool) -> None:
    one = EventId(ANSWER, where, has_usage)
    assert len(str(one)) <= event_id.MAX_LENGTH
    assert event_id.parse(str(one)) == one


@given(
    st.text()
    | st.from_regex(rf"{event_id.ANSWER_ID}:[-0-9eu,]*")
    | st.text("0123456789eu,-:").map(lambda text: f"{ANSWER}:{text}")
)
def test_anything_else_is_refused_or_means_what_it_says(text: str) -> None:
    try:
        one = event_id.parse(text)
    except ValueError:
        return
    assert event_id.parse(str(one)) == one


@pytest.mark.parametrize("text", ["x", "0", ANSWER, f"{ANSWER}:", f"{ANSWER}:1,", f"{ANSWER}:١", f"{ANSWER}:1e\n"])
def test_a_malformed_header_is_named(text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        comeback.read(headers(Last_Event_ID=text + "x"))
    assert refused.value.param == "Last-Event-ID"


@pytest.mark.parametrize("text", ["", "a b", "ü", "k" * 256, "a\tb"])
def test_a_malformed_key_is_named(text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        comeback.read(headers(Idempotency_Key=text))
    assert refused.value.param == "Idempotency-Key"


# An answer: for each choice the deltas of one run of the model, some of them in other channels than the content.
runs = st.lists(
    st.tuples(st.sampled_from([Channel.CONTENT, Channel.REASONING, Channel.CALL_ARGUMENTS]), st.text(min_size=1)),
    max_size=6,
)


def deltas_of(call: Call, choice: int, answer: list[tuple[Channel, str]], cuts: int) -> list[Delta]:
    """The answer's text in pieces of `cuts` characters; a call's name comes ahead of its arguments, whole."""
    out: list[Delta] = []
    offset = calls = 0

    def add(channel: Channel, number: int, text: str) -> None:
        nonlocal offset
        sequence = call.choices[choice].sequence_id
        out.append(
            Delta(
                sequence_id=sequence,
                offset=offset,
                text=text,
                num_tokens=offset + len(text),
                num_prompt_tokens=3,
                channel=channel,
                call=number,
            )
        )
        offset += len(text)

    for channel, text in answer:
        if channel is Channel.CALL_ARGUMENTS:
            add(Channel.CALL_NAME, calls, "look")
        for start in range(0, len(text), cuts):
            add(channel, calls, text[start : start + cuts])
        calls += channel is Channel.CALL_ARGUMENTS
    return out


def told(call: Call, shape: Shape, numbering: Numbering | None, batches: list[list[Delta]], usage: bool) -> bytes:
    """What a reader gets that is told after each batch."""
    events = Events(shape, call.id, 1, "tiny", numbering)
    by_sequence = {choice.sequence_id: choice for choice in call.choices}
    said = b""
    for batch in batches:
        for delta in batch:
            by_sequence[delta.sequence_id].add(delta, 0.0)
        said += b"".join(events.news(choice) for choice in call.take_changed())
    for choice in call.choices:
        choice.finish(
            Finished(
                sequence_id=choice.sequence_id,
                reason=FinishReason.STOP,
                num_prompt_tokens=3,
                num_tokens=max(1, choice.num_tokens),
            )
        )
    said += b"".join(events.news(choice) for choice in call.take_changed())
    return said + (events.usage(call.totals()) if usage else b"")


def batched(deltas: list[Delta], size: int) -> list[list[Delta]]:
    return [deltas[start : start + size] for start in range(0, len(deltas), size)]


@given(st.data(), st.sampled_from([CHAT, COMPLETION]), st.booleans())
def test_the_rest_after_any_event_is_exactly_the_rest(data: st.DataObject, shape: Shape, usage: bool) -> None:
    n = data.draw(st.integers(1, 3))
    answer = [data.draw(runs) for _ in range(n)]
    if shape is COMPLETION:
        answer = [[(Channel.CONTENT, text) for _, text in one] for one in answer]

    def batches(call: Call) -> list[list[Delta]]:
        cuts = data.draw(st.integers(1, 5))
        deltas = [delta for choice in range(n) for delta in deltas_of(call, choice, answer[choice], cuts)]
        if data.draw(st.booleans()):  # choices in turn rather than one after the other
            deltas.sort(key=lambda delta: delta.num_tokens)
        return batched(deltas, data.draw(st.integers(1, 4)))

    first = Call(ANSWER, 1, n, is_streamed=True, is_kept=True)
    events = split(told(first, shape, comeback.numbering_of(first, None), batches(first), usage))
    whole = said_of(events)
    if not events:
        return
    cut = data.draw(st.integers(0, len(events) - 1))
    had: list[Event] = events[: cut + 1]
    assert all(event.id for event in events)

    again = Call(ANSWER, 1, n, is_streamed=True, is_kept=True, is_again=True)
    numbering = comeback.numbering_of(again, event_id.parse(had[-1].id))
    if data.draw(st.booleans()):
        rest = split(told(again, shape, numbering, batches(again), usage))
    else:  # the answer is over, and comes from its record
        terms = Terms(endpoint="chat", model="tiny", created=1, is_streamed=True)
        one = Record(answer_id=ANSWER, owner="o", digest=b"", address="a", cursor="0", num_prompts=1, n=n, terms=terms)
        kept = record.decode(record.encode(record.ended(one, first)))
        assert kept.ending is not None
        record.replay(kept.ending, again)
        rest = split(told(again, shape, numbering, [], usage))
    assert said_of([*had, *rest]) == whole
    if events[cut:][1:]:
        assert rest[-1].id == events[-1].id
