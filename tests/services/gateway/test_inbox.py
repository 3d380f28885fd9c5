"""Replies to calls: each character once, in order, whatever comes twice, late, or not at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.call import Call, Choice
from services.gateway.inbox import Inbox
from shared.errors import InvalidRequest
from shared.messages import Delta, Deltas, Finished, FinishReason, Rejected, sequence_id
from shared.streams import Bus, connect


@pytest.fixture
async def inbox() -> Inbox:
    return Inbox(Bus(connect("redis://127.0.0.1:1"), "p"), "g")  # never asked


def a_call(inbox: Inbox, *, prompts: int = 1, n: int = 1, is_streamed: bool = True) -> Call:
    call = Call("r", prompts, n, is_streamed=is_streamed)
    inbox.open(call)
    return call


def delta(text: str, offset: int, num_tokens: int, request_id: str = "r", choice: int = 0) -> Deltas:
    one = Delta(sequence_id=sequence_id(request_id, choice), offset=offset, text=text, num_tokens=num_tokens)
    return Deltas(deltas=[one])


def end(reason: FinishReason = FinishReason.STOP, request_id: str = "r", choice: int = 0, cached: int = 0) -> Deltas:
    one = Finished(
        sequence_id=sequence_id(request_id, choice),
        reason=reason,
        num_prompt_tokens=5,
        num_tokens=3,
        cached_tokens=cached,
    )
    return Deltas(finished=[one])


def text_of(choice: Choice) -> str:
    return "".join(part.text for part in choice.take())


async def test_duplicates_and_overlaps_are_dropped(inbox: Inbox) -> None:
    call = a_call(inbox)
    for message in (
        delta("Hel", 0, 1),
        delta("Hel", 0, 1),
        delta("lo", 3, 2),
        delta("Hello wor", 0, 3),  # after a takeover: the same text, cut elsewhere
        delta("or", 7, 3),
        delta("ld", 9, 4),
    ):
        inbox.deliver(message, 1.0)
    (choice,) = call.take_changed()
    assert text_of(choice) == "Hello world"
    assert choice.num_tokens == 4
    assert call.error is None


async def test_a_gap_ends_the_call(inbox: Inbox) -> None:
    call = a_call(inbox)
    inbox.deliver(delta("a", 0, 1), 1.0)
    inbox.deliver(delta("c", 2, 3), 1.0)
    assert call.error is not None
    assert call.error.status == 503


async def test_nothing_follows_the_end(inbox: Inbox) -> None:
    call = a_call(inbox)
    for message in (delta("a", 0, 1), end(), end(FinishReason.LENGTH), delta("b", 1, 2)):
        inbox.deliver(message, 1.0)
    (choice,) = call.take_changed()
    assert text_of(choice) == "a"
    assert choice.finished is not None
    assert choice.finished.reason is FinishReason.STOP
    assert call.num_open == 0


async def test_unknown_ids_are_left(inbox: Inbox) -> None:
    call = a_call(inbox)
    inbox.deliver(delta("x", 0, 1, request_id="other"), 1.0)
    inbox.deliver(end(request_id="other"), 1.0)
    inbox.deliver(Rejected(request_id="other", error=InvalidRequest("no").body()), 1.0)
    inbox.close(call)
    inbox.deliver(delta("x", 0, 1), 1.0)
    assert call.take_changed() == []
    assert call.error is None


async def test_a_plain_call_is_woken_once(inbox: Inbox) -> None:
    call = a_call(inbox, n=2, is_streamed=False)
    inbox.deliver(delta("a", 0, 1), 1.0)
    inbox.deliver(end(choice=0), 1.0)
    assert not call._wake.is_set()
    inbox.deliver(end(choice=1), 1.0)
    assert call._wake.is_set()


async def test_a_slow_reader_costs_text_and_nothing_else(inbox: Inbox) -> None:
    call = a_call(inbox)
    for place in range(10_000):
        inbox.deliver(delta("x", place, place + 1), 1.0)
    (choice,) = call.take_changed()
    assert len(choice.parts) <= 65
    assert text_of(choice) == "x" * 10_000


async def test_a_rejected_prompt_ends_the_call_and_leaves_the_others_to_abort(inbox: Inbox) -> None:
    call = a_call(inbox, prompts=2, n=2)
    inbox.deliver(end(request_id="r-1", choice=0), 1.0)
    inbox.deliver(Rejected(request_id="r-0", error=InvalidRequest("no", param="prompt").body()), 1.0)
    assert call.error is not None
    assert call.error.param == "prompt"
    assert call.open_sequences == [sequence_id("r-1", 1)]


@pytest.mark.parametrize("reason", [FinishReason.ABORT, FinishReason.ERROR])
async def test_an_end_that_is_no_answer_is_an_error(inbox: Inbox, reason: FinishReason) -> None:
    call = a_call(inbox)
    inbox.deliver(end(reason), 1.0)
    assert call.error is not None
    assert call.error.status >= 500
    assert call.open_sequences == []


async def test_a_prompt_counts_once_and_as_cached_what_all_choices_found(inbox: Inbox) -> None:
    call = a_call(inbox, prompts=2, n=2)
    for request_id, choice, cached in (("r-0", 0, 0), ("r-0", 1, 4), ("r-1", 0, 3), ("r-1", 1, 5)):
        inbox.deliver(end(request_id=request_id, choice=choice, cached=cached), 1.0)
    totals = call.totals()
    assert (totals.prompt, totals.completion, totals.cached) == (10, 12, 3)


async def test_the_stream_is_trimmed_to_a_minute_and_to_what_the_oldest_call_needs(inbox: Inbox) -> None:
    assert inbox.trim_before() == "0-0"
    inbox.cursor = "1000000-5"
    assert inbox.trim_before() == "940000-0"
    call = a_call(inbox)
    inbox.cursor = "2000000-0"
    assert inbox.trim_before() == "1000000-0"
    inbox.close(call)
    assert inbox.trim_before() == "1940000-0"


@given(st.text(), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7), st.booleans())))
def test_any_cut_of_the_text_with_any_repetition_is_told_once(text: str, cuts: list[tuple[int, int, bool]]) -> None:
    """As after takeovers: a piece begins anywhere up to what has been sent (`back` before it), so some repeat."""
    call = Call("r", 1, 1, is_streamed=True)
    (choice,) = call.choices
    sent, taken = 0, ""
    for back, size, is_taken in [*cuts, (0, len(text), False)]:
        start = max(0, sent - back)
        stop = min(len(text), start + size)
        choice.add(
            Delta(sequence_id=choice.sequence_id, offset=start, text=text[start:stop], num_tokens=max(stop, 1)), 1.0
        )
        sent = max(sent, stop)
        if is_taken:
            taken += text_of(choice)
    assert taken + text_of(choice) == text
    assert call.error is None
