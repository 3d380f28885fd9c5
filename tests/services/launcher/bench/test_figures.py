"""Figures of made-up answers."""

import pytest

from services.launcher.bench.client import Stream, split
from services.launcher.bench.figures import Answer, percentile, row_of
from services.launcher.bench.workloads import Ask, Session


def test_a_row_of_two_answers_and_an_error() -> None:
    answers = [
        Answer(started=10, first=10.1, last=10.5, gaps=[0.2, 0.2], tokens_in=8, tokens_out=3, tokens_cached=4),
        Answer(error="boom"),
        Answer(started=11, first=11.3, last=12.0, gaps=[0.7], tokens_in=10, tokens_out=2),
    ]
    row = row_of("here", "random", 4, None, answers)
    assert (row.ok, row.errors, row.first_error) == (2, 1, "boom")
    assert row.wall_s == 2.0
    assert (row.out_tok_s, row.in_tok_s, row.req_s) == (2.5, 9.0, 1.0)
    assert (row.ttft_p50_ms, row.ttft_p99_ms) == (300.0, 300.0)
    assert (row.itl_p50_ms, row.itl_p99_ms) == (200.0, 700.0)
    assert row.tpot_ms == pytest.approx((0.4 / 2 + 0.7) / 2 * 1e3)
    assert (row.out_tokens, row.in_tokens, row.cached_tokens) == (5, 18, 4)


def test_a_row_without_an_answer() -> None:
    row = row_of("here", "random", 4, 2.0, [Answer(error="boom")])
    assert (row.ok, row.errors, row.rate, row.out_tok_s) == (0, 1, 2.0, 0.0)


def test_percentiles() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 51, 100, 100]
    assert percentile([], 0.5) == 0


def test_usage_alone_is_no_token() -> None:
    stream = Stream(1.0)
    stream.event(b'{"choices":[{"text":"a"}],"usage":null}', 1.5)
    stream.event(b'{"choices":[{"text":"b"}]}', 1.75)
    stream.event(b'{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}', 9.0)
    answer = stream.answer()
    assert (answer.first, answer.last, answer.gaps) == (1.5, 1.75, [0.25])
    assert (answer.tokens_in, answer.tokens_out, answer.tokens_cached, answer.error) == (5, 2, 0, "")


def test_an_error_in_the_stream_and_an_empty_stream_are_errors() -> None:
    stream = Stream(1.0)
    stream.event(b'{"choices":[{"text":"a"}]}', 1.5)
    stream.event(b'{"error":{"message":"worker gone"}}', 2.0)
    assert "worker gone" in stream.answer().error
    assert Stream(1.0).answer().error == "the stream ended without a token"


def test_sessions_are_dealt_out_evenly() -> None:
    sessions = [Session([Ask([index], 1)]) for index in range(7)]
    parts = split(sessions, 3)
    assert sorted(len(part) for part in parts) == [2, 2, 3]
    assert sorted(session.asks[0].prompt[0] for part in parts for session in part) == list(range(7))
    assert len(split(sessions[:2], 4)) == 2
