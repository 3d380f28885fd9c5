"""A shard's log to replies: the same text for any batching, order and repetition, and an end for everything."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from services.tokenizer.decode import Detokenizer
from services.tokenizer.shard_output import DEADLINE_GRACE_S, GATEWAY_GONE_S, SILENCE_S, Replies, ShardOutput
from shared.errors import ErrorBody
from shared.messages import Ended, Fence, Finished, FinishReason, Open, Output
from shared.packing import pack_i32, pack_i64

TEXT = "the cat 🎉 sat on the mat and 你好 to the dog"


def opened(*sequence_ids: int, reply_to: str = "g", **fields: Any) -> Open:
    return Open(
        request_id="r",
        reply_to=reply_to,
        sequence_ids=list(sequence_ids),
        num_prompt_tokens=5,
        prompt_tail=b"",
        **fields,
    )


def tokens(*entries: tuple[int, int, int], ended: list[Ended] | None = None, **fields: Any) -> Output:
    """(sequence id, index, token id) each."""
    sequence_ids, indices, token_ids = zip(*entries, strict=True) if entries else ((), (), ())
    return Output(
        sequence_ids=pack_i64(sequence_ids),
        indices=pack_i32(indices),
        token_ids=pack_i32(token_ids),
        ended=ended or [],
        **fields,
    )


def output_of(sequence_id: int, token_ids: list[int], **fields: Any) -> Output:
    return tokens(*((sequence_id, index, token_id) for index, token_id in enumerate(token_ids)), **fields)


def stopped(sequence_id: int, num_tokens: int, **fields: Any) -> Ended:
    return Ended(sequence_id=sequence_id, reason=FinishReason.STOP, num_tokens=num_tokens, **fields)


class Reader:
    """What a gateway makes of the replies: text by offset, each sequence's end."""

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}
        self.finished: dict[int, Finished] = {}
        self.aborts: list[int] = []

    def take(self, shard: ShardOutput) -> None:
        replies = Replies()
        shard.take(replies)
        for deltas in replies.by_gateway().values():
            for delta in deltas.deltas:
                assert delta.text
                text = self.texts.get(delta.sequence_id, "")
                assert delta.offset <= len(text), "a gap in the text"
                assert text[delta.offset :] == delta.text[: len(text) - delta.offset], "other text at an offset"
                self.texts[delta.sequence_id] = text[: delta.offset] + delta.text
            for finished in deltas.finished:
                self.finished.setdefault(finished.sequence_id, finished)
        self.aborts += replies.aborts


def run(detokenizer: Detokenizer, *messages: Open | Output) -> tuple[Reader, ShardOutput]:
    shard, reader = ShardOutput(detokenizer), Reader()
    for number, message in enumerate(messages):
        if isinstance(message, Open):
            shard.open(message, f"{number}-0", 100.0)
        else:
            shard.output(message, 100.0)
        reader.take(shard)
    return reader, shard


@pytest.fixture(scope="module")
def detokenizer(byte_level: Tokenizer) -> Detokenizer:
    return Detokenizer(byte_level)


def encode(detokenizer: Detokenizer, text: str) -> list[int]:
    return list(detokenizer.tokenizer.encode(text, add_special_tokens=False).ids)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    stops=st.lists(st.sampled_from(["mat", "t s", "🎉", "你好 to", "xyz", " "]), max_size=2),
    min_tokens=st.integers(0, 8),
    is_stop_shown=st.booleans(),
)
def test_any_delivery_gives_the_same_text(
    detokenizer: Detokenizer, seed: int, stops: list[str], min_tokens: int, is_stop_shown: bool
) -> None:
    """Random batches, duplicates, tokens out of order, an end ahead of its tokens, then all of it again."""
    rng = random.Random(seed)
    token_ids = encode(detokenizer, TEXT)
    fields = {"stop": stops, "min_tokens": min_tokens, "include_stop_str_in_output": is_stop_shown}
    end = stopped(1, len(token_ids), cached_tokens=3)
    plain, _ = run(detokenizer, opened(1, **fields), output_of(1, token_ids, ended=[end]))

    entries = [(1, index, token_id) for index, token_id in enumerate(token_ids)]
    shuffled = entries + rng.choices(entries, k=10)
    for place in range(len(shuffled)):  # a few places out of order
        other = min(len(shuffled) - 1, place + rng.choice([0, 0, 1, 3]))
        shuffled[place], shuffled[other] = shuffled[other], shuffled[place]
    log: list[Open | Output] = [opened(1, **fields)]
    while shuffled:
        size = rng.randint(1, 8)
        log.append(tokens(*shuffled[:size]))
        shuffled = shuffled[size:]
    log.insert(rng.randint(1, len(log)), Output(ended=[end]))
    log.insert(rng.randint(1, len(log)), opened(1, **fields))

    reader, shard = run(detokenizer, *log)
    assert reader.texts == plain.texts
    assert len(shard) == 0
    assert reader.finished[1].reason == FinishReason.STOP
    assert reader.finished[1].stop_reason == plain.finished[1].stop_reason
    assert reader.finished[1].num_tokens == plain.finished[1].num_tokens
    again, _ = run(detokenizer, *log)
    assert again.texts == reader.texts
    assert again.finished == reader.finished


def test_what_comes_behind_a_fence_is_not_used(detokenizer: Detokenizer) -> None:
    """A worker that was only slow goes on writing while its sequences run elsewhere already."""
    token_ids, other = encode(detokenizer, "The cat sat"), encode(detokenizer, "The dog ran")
    shard, reader = ShardOutput(detokenizer), Reader()
    shard.open(opened(1), "1-0", 100.0)
    shard.output(tokens((1, 0, token_ids[0]), worker="slow", epoch=1), 100.0)
    shard.fence(Fence(worker="slow", epoch=1))
    late = [(1, index, token_id) for index, token_id in enumerate(other)][1:]
    assert shard.output(tokens(*late, worker="slow", epoch=1, ended=[stopped(1, len(other))]), 100.0) == 0
    rest = [(1, index, token_id) for index, token_id in enumerate(token_ids)][1:]
    shard.output(tokens(*rest, worker="slow", epoch=2, ended=[stopped(1, len(token_ids))]), 100.0)
    reader.take(shard)
    assert reader.texts == {1: "The cat sat"}
    assert reader.finished[1].num_tokens == len(token_ids)


def test_a_gap_that_is_not_filled_ends_the_sequence_with_a_503(detokenizer: Detokenizer) -> None:
    """A broker that failed may have lost the last second of what was written to it."""
    token_ids = encode(detokenizer, "The cat sat on the mat")
    shard, reader = ShardOutput(detokenizer), Reader()
    for sequence_id in (1, 2, 3):
        shard.open(opened(sequence_id), "1-0", 100.0)
        shard.output(tokens((sequence_id, 0, token_ids[0])), 100.0)
    shard.output(tokens((1, 2, token_ids[2])), 100.0)  # the one before it was lost
    shard.output(Output(ended=[stopped(2, 5)]), 100.0)  # as were all before this end
    assert shard.torn(100.0) == []
    shard.output(tokens((2, 1, token_ids[1])), 105.0)  # but not this one: it was only late
    assert shard.torn(109.0) == []
    assert [one.sequence_id for one in shard.torn(111.0)] == [1]
    shard.cancel(shard.torn(120.0), "a part of the answer was lost by the broker")
    reader.take(shard)
    assert {one.sequence_id: one.error.status for one in reader.finished.values() if one.error} == {1: 503, 2: 503}
    assert sorted(reader.aborts) == [1, 2]
    assert shard.torn(1000.0) == []


def test_plain_text_and_counts(detokenizer: Detokenizer) -> None:
    token_ids = encode(detokenizer, TEXT)
    reader, _ = run(
        detokenizer, opened(1), output_of(1, token_ids, ended=[stopped(1, len(token_ids), cached_tokens=4)])
    )
    assert reader.texts == {1: TEXT}
    assert reader.finished[1] == Finished(
        sequence_id=1,
        reason=FinishReason.STOP,
        num_prompt_tokens=5,
        num_tokens=len(token_ids),
        cached_tokens=4,
    )
    assert reader.aborts == []


def test_a_stop_string_cuts_the_text_and_aborts(detokenizer: Detokenizer) -> None:
    token_ids = encode(detokenizer, TEXT)
    reader, shard = run(
        detokenizer,
        opened(1, stop=["on the"]),
        output_of(1, token_ids, cached_ids=pack_i64([1]), cached=pack_i32([2])),
        Output(ended=[Ended(sequence_id=1, reason=FinishReason.ABORT, num_tokens=9)]),
    )
    assert reader.texts == {1: "the cat 🎉 sat "}
    finished = reader.finished[1]
    assert (finished.reason, finished.stop_reason, finished.cached_tokens) == (FinishReason.STOP, "on the", 2)
    assert finished.num_tokens < len(token_ids)
    assert reader.aborts == [1]
    assert len(shard) == 0


def test_a_stop_string_that_never_comes_is_given_out_at_the_end(detokenizer: Detokenizer) -> None:
    token_ids = encode(detokenizer, "the cat")
    reader, _ = run(detokenizer, opened(1, stop=["cats"]), output_of(1, token_ids, ended=[stopped(1, len(token_ids))]))
    assert reader.texts == {1: "the cat"}
    assert reader.aborts == []


def test_min_tokens_keeps_stop_strings_from_counting(detokenizer: Detokenizer) -> None:
    token_ids = encode(detokenizer, "the cat and the dog and the mat")
    first = len(encode(detokenizer, "the cat and"))
    reader, _ = run(detokenizer, opened(1, stop=["and"], min_tokens=first), output_of(1, token_ids))
    assert reader.texts == {1: "the cat and the dog "}


@pytest.mark.parametrize(
    ("last", "fields", "text", "reason"),
    [
        (1, {"eos_token_ids": [1]}, "the", None),
        (1, {"eos_token_ids": [1], "skip_special_tokens": False}, "the", None),
        (1, {"eos_token_ids": [1], "skip_special_tokens": False, "include_stop_str_in_output": True}, "the</s>", None),
        (33, {"stop_token_ids": [33]}, "the", 33),
        (33, {"stop_token_ids": [33], "include_stop_str_in_output": True}, "the?", 33),
    ],
)
def test_the_stop_token_is_counted_but_not_shown(
    detokenizer: Detokenizer, last: int, fields: dict[str, Any], text: str, reason: int | None
) -> None:
    token_ids = [*encode(detokenizer, "the"), last]
    shown = text.replace("?", detokenizer.tokenizer.decode([33]))
    end = stopped(1, len(token_ids), stop_token_id=last)
    reader, _ = run(detokenizer, opened(1, **fields), output_of(1, token_ids), Output(ended=[end]))
    assert reader.texts == {1: shown}
    assert (reader.finished[1].num_tokens, reader.finished[1].stop_reason) == (len(token_ids), reason)


def test_half_a_character_at_the_end_is_shown_as_the_tokenizer_does(detokenizer: Detokenizer) -> None:
    token_ids = encode(detokenizer, "the 🎉")[:-1]
    ended = Ended(sequence_id=1, reason=FinishReason.LENGTH, num_tokens=len(token_ids))
    reader, _ = run(detokenizer, opened(1), output_of(1, token_ids, ended=[ended]))
    assert reader.texts == {1: detokenizer.tokenizer.decode(token_ids)}
    assert reader.texts[1].endswith("\ufffd")


def test_an_error_or_abort_ends_at_once_whatever_is_missing(detokenizer: Detokenizer) -> None:
    error = ErrorBody(status=503, message="no worker", type="server_error")
    reader, shard = run(
        detokenizer,
        opened(1, 2),
        Output(
            ended=[
                Ended(sequence_id=1, reason=FinishReason.ERROR, num_tokens=7, error=error),
                Ended(sequence_id=2, reason=FinishReason.ABORT, num_tokens=7),
            ]
        ),
    )
    assert (reader.finished[1].reason, reader.finished[1].error) == (FinishReason.ERROR, error)
    assert reader.finished[2].reason == FinishReason.ABORT
    assert len(shard) == 0


def test_one_message_a_gateway_for_all_its_sequences(detokenizer: Detokenizer) -> None:
    shard = ShardOutput(detokenizer)
    shard.open(opened(1, 2, reply_to="a"), "1-0", 0.0)
    shard.open(opened(3, reply_to="b"), "2-0", 0.0)
    [the] = encode(detokenizer, "the")
    for index in range(3):
        shard.output(tokens(*((sequence_id, index, the) for sequence_id in (1, 2, 3))), 0.0)
    replies = Replies()
    shard.take(replies)
    by_gateway = replies.by_gateway()
    assert {gateway: len(deltas.deltas) for gateway, deltas in by_gateway.items()} == {"a": 2, "b": 1}
    assert by_gateway["b"].deltas[0].text == "thethethe"
    assert by_gateway["b"].deltas[0].num_tokens == 3


def test_a_request_delivered_again_after_its_end_stays_over(detokenizer: Detokenizer) -> None:
    token_ids = encode(detokenizer, "the")
    output = output_of(1, token_ids, ended=[stopped(1, len(token_ids))])
    _, shard = run(detokenizer, opened(1), output, opened(1))
    assert len(shard) == 0


def test_tokens_of_unknown_sequences_are_ignored(detokenizer: Detokenizer) -> None:
    reader, _ = run(detokenizer, output_of(1, encode(detokenizer, "the"), ended=[stopped(1, 1)]), opened(1))
    assert (reader.texts, reader.finished) == ({}, {})


def test_negative_and_unknown_token_ids_show_nothing(detokenizer: Detokenizer) -> None:
    [the] = encode(detokenizer, "the")
    reader, _ = run(detokenizer, opened(1), output_of(1, [-1, 10**6, the], ended=[stopped(1, 3)]))
    assert reader.texts == {1: "the"}


@pytest.mark.parametrize(
    "broken",
    [Output(token_ids=pack_i32([1])), Output(sequence_ids=b"123"), Output(cached_ids=pack_i64([1]))],
)
def test_arrays_that_do_not_fit_are_refused_whole(detokenizer: Detokenizer, broken: Output) -> None:
    with pytest.raises(ValueError, match=r"arrays|multiple"):
        ShardOutput(detokenizer).output(broken, 0.0)


def test_the_log_is_needed_from_the_oldest_open_in_flight(detokenizer: Detokenizer) -> None:
    shard, reader = ShardOutput(detokenizer), Reader()
    [the] = encode(detokenizer, "the")
    shard.open(opened(1), "1-0", 0.0)
    shard.open(opened(2), "2-0", 0.0)
    shard.cursor = "2-0"
    assert shard.oldest_needed() == "1-0"
    shard.output(output_of(1, [the], ended=[stopped(1, 1)]), 0.0)
    reader.take(shard)
    shard.cursor = "3-0"
    assert shard.oldest_needed() == "2-0"
    shard.output(output_of(2, [the], ended=[stopped(2, 1)]), 0.0)
    reader.take(shard)
    assert shard.oldest_needed() == "3-0"


def test_sequences_of_a_gateway_long_gone_are_cancelled(detokenizer: Detokenizer) -> None:
    shard, reader = ShardOutput(detokenizer), Reader()
    shard.open(opened(1, reply_to="alive"), "1-0", 1000.0)
    shard.open(opened(2, reply_to="gone"), "2-0", 1000.0)
    shard.open(opened(3, reply_to="unknown"), "3-0", 1000.0)
    later = 1000.0 + GATEWAY_GONE_S + 1
    assert shard.orphans(1001.0, {}) == []
    orphans = shard.orphans(later, {"alive": later, "gone": 990.0})
    assert [one.sequence_id for one in orphans] == [2, 3]
    shard.cancel(orphans, "gone")
    reader.take(shard)
    assert reader.aborts == [2, 3]
    assert [one.error.status for one in reader.finished.values() if one.error] == [503, 503]
    assert len(shard) == 1
    assert not any(map(shard.is_in_flight, orphans))


def test_a_sequence_that_nobody_ends_fails_in_time(detokenizer: Detokenizer) -> None:
    shard, reader = ShardOutput(detokenizer), Reader()
    shard.open(opened(1), "1-0", 1000.0, deadline=1010.0)
    shard.open(opened(2), "2-0", 1000.0)
    for late in (1010.0 + DEADLINE_GRACE_S + 1, 1000.0 + SILENCE_S + 1):
        assert len(shard.late(late)) == 1
        shard.cancel(shard.late(late), "late")
    reader.take(shard)
    errors = [reader.finished[sequence_id].error for sequence_id in (1, 2)]
    assert [error.status for error in errors if error] == [503, 503]
    assert reader.aborts == [1, 2]
    assert len(shard) == 0


def test_forced_tokens_are_counted_once_however_they_come(byte_level: Tokenizer) -> None:
    ids = byte_level.encode(TEXT, add_special_tokens=False).ids
    shard = ShardOutput(Detokenizer(byte_level))
    shard.open(opened(1), "1-0", 0.0)
    late = tokens((1, 2, ids[2]), (1, 3, ids[3]), (1, 4, ids[4]), forced=pack_i32([0, 2]))
    shard.output(late, 0.0)
    shard.output(late, 0.0)
    shard.output(tokens((1, 0, ids[0]), (1, 1, ids[1]), forced=pack_i32([0])), 0.0)
    shard.output(late, 0.0)
    shard.output(tokens((1, 5, ids[5]), ended=[stopped(1, 6)]), 0.0)
    reader = Reader()
    reader.take(shard)
    assert reader.finished[1].forced_tokens == 3
    assert reader.finished[1].num_tokens == 6
