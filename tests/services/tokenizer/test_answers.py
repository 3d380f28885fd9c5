"""A shard's tokens to tool calls and reasoning: alike for any batching, and after another process took over."""

import random
import re
from collections.abc import Sequence
from typing import Any

import pytest
from tokenizers import Tokenizer, pre_tokenizers

from services.tokenizer.decode import Detokenizer
from services.tokenizer.shard_output import Replies, ShardOutput
from services.tokenizer.tools.formats import CHOICES, FORMATS
from services.tokenizer.tools.reader import Piece, joined
from shared.messages import AnswerFormat, Channel, Delta, Ended, Finished, FinishReason, Open, Output
from shared.packing import pack_i32, pack_i64
from tests.services.tokenizer.tools.answers import NAMES, an_answer, calls_of, text_of

MARKS = ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<think>", "</think>", "<|python_tag|>"]


@pytest.fixture(scope="session")
def detokenizer(byte_level: Tokenizer) -> Detokenizer:
    """The marks are special tokens here; all else can be said in bytes."""
    tokenizer = Tokenizer.from_str(byte_level.to_str())
    tokenizer.add_special_tokens(MARKS)
    return Detokenizer(tokenizer)


def bytes_of(detokenizer: Detokenizer, text: str, marks: Sequence[str] = (*MARKS, "<|im_end|>")) -> list[int]:
    """The text's tokens: one for each of the marks, one a byte for all else."""
    tokenizer, ids = detokenizer.tokenizer, []
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for part in re.split("(" + "|".join(map(re.escape, marks)) + ")", text) if marks else [text]:
        if part in marks:
            ids.append(tokenizer.token_to_id(part))
        elif part:
            [(spelled, _)] = letters.pre_tokenize_str(part)
            ids += [tokenizer.token_to_id(letter) for letter in spelled]
    return ids


JSON_CALL = '{"name": "f", "arguments": {}}'
CALL = f"<tool_call>{JSON_CALL}</tool_call>"


def opened(**fields: Any) -> Open:
    return Open(request_id="r", reply_to="g", sequence_ids=[1], num_prompt_tokens=5, prompt_tail=b"", **fields)


def thinking(form: AnswerFormat) -> Open:
    return opened(format=form, kept=["<think>", "</think>"])


def answered(
    detokenizer: Detokenizer, message: Open, ids: list[int], batches: list[int], reason: FinishReason
) -> tuple[list[Delta], Finished]:
    """Deltas and end when so many tokens come at a time; the rest at once."""
    shard, deltas, at = ShardOutput(detokenizer), [], 0
    shard.open(message, "1-0", 100.0)
    finished: list[Finished] = []
    for count in [*batches, len(ids)]:
        piece = ids[at : at + count]
        ends = [Ended(sequence_id=1, reason=reason, num_tokens=len(ids))] if at + count >= len(ids) else []
        if not piece and not ends:
            continue
        indices = range(at, at + len(piece))
        output = Output(sequence_ids=pack_i64([1] * len(piece)), indices=pack_i32(indices),
                        token_ids=pack_i32(piece), ended=ends)  # fmt: skip
        shard.output(output, 100.0)
        replies = Replies()
        shard.take(replies)
        deltas += replies.deltas.get("g", [])
        finished += replies.finished.get("g", [])
        at += count
        if finished:
            break
    assert len(finished) == 1
    return deltas, finished[0]


def pieces_of(deltas: list[Delta]) -> list[Piece]:
    """What the deltas say; their offsets fit each other."""
    offset = 0
    for delta in deltas:
        assert (delta.offset, bool(delta.text)) == (offset, True)
        offset += len(delta.text)
    return joined([Piece(delta.channel, delta.call, delta.text) for delta in deltas])


@pytest.mark.parametrize("form", CHOICES)
def test_calls_come_alike_for_any_batching_of_tokens(detokenizer: Detokenizer, form: str) -> None:
    rng = random.Random(f"answers/{form}")
    marks = [mark for mark in MARKS if mark in FORMATS[form].marks]
    message = opened(format=AnswerFormat(tool_parser=form, tool_names=NAMES), kept=marks)
    for _ in range(6):
        answer = an_answer(rng, form)
        ids = bytes_of(detokenizer, answer.text, marks)
        plain = pieces_of(answered(detokenizer, message, ids, [], FinishReason.STOP)[0])
        assert calls_of(plain) == answer.calls
        assert text_of(plain) == answer.content
        for batches in ([1] * len(ids), [rng.randint(1, 9) for _ in ids]):
            assert pieces_of(answered(detokenizer, message, ids, batches, FinishReason.STOP)[0]) == plain


def test_special_tokens_that_mark_come_through_and_others_do_not(detokenizer: Detokenizer) -> None:
    ids = bytes_of(detokenizer, "a<|im_end|>[TOOL_CALLS]f[ARGS]{}<|python_tag|>")
    marks = ["[TOOL_CALLS]", "[ARGS]"]
    message = opened(format=AnswerFormat(tool_parser="mistral", tool_names=["f"]), kept=marks)
    deltas, _ = answered(detokenizer, message, ids, [], FinishReason.STOP)
    assert pieces_of(deltas) == [
        Piece(Channel.CONTENT, 0, "a"),
        Piece(Channel.CALL_NAME, 0, "f"),
        Piece(Channel.CALL_ARGUMENTS, 0, "{}"),
    ]
    deltas, _ = answered(detokenizer, opened(), ids, [], FinishReason.STOP)
    assert pieces_of(deltas) == [Piece(Channel.CONTENT, 0, "af{}")]


@pytest.mark.parametrize(
    ("text", "form", "reasoning", "content", "tokens"),
    [
        ("<think>\nTwo.\n</think>\n\n4", AnswerFormat(reasoning_parser="think"), "Two.", "4", 8),
        ("Two.\n</think>4", AnswerFormat(reasoning_parser="think", is_reasoning=True), "Two.", "4", 6),
        ("Two", AnswerFormat(reasoning_parser="think", is_reasoning=True), "Two", "", 3),
        ("  No <think> at first", AnswerFormat(reasoning_parser="think"), "", "  No <think> at first", 0),
        ("<think></think>4", AnswerFormat(reasoning_parser="think"), "", "4", 2),
    ],
)
def test_reasoning(
    detokenizer: Detokenizer, text: str, form: AnswerFormat, reasoning: str, content: str, tokens: int
) -> None:
    ids = bytes_of(detokenizer, text)
    for batches in ([], [1] * len(ids), [3] * len(ids)):
        deltas, finished = answered(detokenizer, thinking(form), ids, batches, FinishReason.LENGTH)
        pieces = pieces_of(deltas)
        assert (text_of(pieces, Channel.REASONING), text_of(pieces)) == (reasoning, content)
        assert finished.reasoning_tokens == tokens


def test_calls_behind_reasoning(detokenizer: Detokenizer) -> None:
    form = AnswerFormat(tool_parser="hermes", tool_names=["f"], reasoning_parser="think")
    text = '<think>Not yet: <tool_call>{"name": "g"}</think>\n<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    deltas, _ = answered(
        detokenizer,
        thinking(form),
        bytes_of(detokenizer, text),
        [],
        FinishReason.STOP,
    )
    pieces = pieces_of(deltas)
    assert calls_of(pieces) == [("f", "{}")]
    assert text_of(pieces, Channel.REASONING) == 'Not yet: <tool_call>{"name": "g"}'
    assert text_of(pieces) == ""


@pytest.mark.parametrize(
    ("text", "is_reasoning", "tool_parser", "content"),
    [
        (f"<think>\nHm: {CALL} </think>\n{CALL}", False, "hermes", f"<think>\nHm: {CALL} </think>"),
        (f" \n<think>{CALL}</think>{CALL}", False, "hermes", f" \n<think>{CALL}</think>"),
        (f" Hm: {CALL}\n</think>So: {CALL}", True, "hermes", f" Hm: {CALL}\n</think>So:"),
        (f"<think>{JSON_CALL}</think>{JSON_CALL}", False, "json", f"<think>{JSON_CALL}</think>"),
        (f"<think>{CALL}</thin", False, "hermes", None),
        (f"{CALL} </think", True, "hermes", None),
        ("<thi", False, "hermes", None),
        ("No <think> at first </think> ", False, "hermes", None),
    ],
)
def test_reasoning_that_stays_in_the_content_holds_no_calls(
    detokenizer: Detokenizer, text: str, is_reasoning: bool, tool_parser: str, content: str | None
) -> None:
    """content: None: all that was written."""
    form = AnswerFormat(tool_parser=tool_parser, tool_names=["f"], reasoning_parser="think",
                        is_reasoning=is_reasoning, keeps_reasoning=True)  # fmt: skip
    ids = bytes_of(detokenizer, text)
    for batches in ([], [1] * len(ids), *([border] for border in range(1, len(ids)))):
        deltas, finished = answered(detokenizer, thinking(form), ids, batches, FinishReason.STOP)
        pieces = pieces_of(deltas)
        assert calls_of(pieces) == ([] if content is None else [("f", "{}")])
        assert text_of(pieces) == (text if content is None else content)
        assert text_of(pieces, Channel.REASONING) == ""
        assert finished.reasoning_tokens == 0


def test_another_owner_of_the_shard_says_the_same(detokenizer: Detokenizer) -> None:
    """What was said up to any token, and what is said from the start by whoever takes over: the same characters of
    the same kind at the same offsets."""
    form = AnswerFormat(tool_parser="hermes", tool_names=["f"], reasoning_parser="think")
    text = '<think>Hm</think>Well\n<tool_call>{"name": "f", "arguments": {"a": "é"}}</tool_call> ok'
    ids, message = bytes_of(detokenizer, text), thinking(form)

    def kinds(deltas: list[Delta]) -> list[tuple[Channel, int, str]]:
        return [(delta.channel, delta.call, mark) for delta in deltas for mark in delta.text]

    whole = kinds(answered(detokenizer, message, ids, [], FinishReason.STOP)[0])
    for seen in range(1, len(ids)):
        shard, replies = ShardOutput(detokenizer), Replies()
        shard.open(message, "1-0", 100.0)
        shard.output(Output(sequence_ids=pack_i64([1] * seen), indices=pack_i32(range(seen)),
                            token_ids=pack_i32(ids[:seen])), 100.0)  # fmt: skip
        shard.take(replies)
        said = kinds(replies.deltas.get("g", []))
        assert said == whole[: len(said)]


def test_a_stop_string_ends_a_call_where_it_stands(detokenizer: Detokenizer) -> None:
    form = AnswerFormat(tool_parser="hermes", tool_names=["f"])
    text = '<tool_call>{"name": "f", "arguments": {"a": "STOP"}}</tool_call>'
    message = opened(format=form, stop=["STOP"])
    deltas, finished = answered(detokenizer, message, bytes_of(detokenizer, text), [], FinishReason.STOP)
    assert calls_of(pieces_of(deltas)) == [("f", '{"a": "')]
    assert finished.stop_reason == "STOP"
