"""The workloads' shapes."""

import pytest

from services.launcher.bench.workloads import WORKLOADS, Sizes, make_sessions
from shared.errors import ConfigError

FULL = Sizes(vocab=48000, scale=1.0, length=1.0)


@pytest.mark.parametrize(
    ("workload", "sessions", "tokens_in", "tokens_out"),
    [
        ("single", 1, 128, 512),
        ("random", 256, 1024, 128),
        ("shared", 512, 2176, 128),
        ("agent", 64, 2240, 64),
        ("json", 128, 256, 128),
        ("free", 128, 256, 128),
    ],
)
def test_shapes(workload: str, sessions: int, tokens_in: int, tokens_out: int) -> None:
    made = make_sessions(workload, FULL, 1)
    assert len(made) == sessions
    assert {len(session.asks[0].prompt) for session in made} == {tokens_in}
    assert {ask.max_tokens for session in made for ask in session.asks} == {tokens_out}
    assert all(ask.has_schema == (workload == "json") for session in made for ask in session.asks)
    assert all(session.start_s == 0 for session in made)


def test_a_crowd_has_one_system_prompt() -> None:
    made = make_sessions("crowd", Sizes(48000, 0.01, 1.0), 1)
    assert len(made) == 20
    assert len({tuple(session.asks[0].prompt[:2000]) for session in made}) == 1
    assert len({tuple(session.asks[0].prompt[2000:]) for session in made}) == 20


def test_groups_share_their_prefix_and_are_mixed() -> None:
    made = make_sessions("shared", FULL, 1)
    prefixes = [tuple(session.asks[0].prompt[:2048]) for session in made]
    assert sorted(prefixes.count(prefix) for prefix in set(prefixes)) == [32] * 16
    assert len(set(prefixes[:32])) > 1


def test_an_agent_s_turns_extend_each_other() -> None:
    first, second = make_sessions("agent", FULL, 1)[:2]
    assert len(first.asks) == 6
    for before, after in zip(first.asks, first.asks[1:], strict=False):
        assert after.prompt[: len(before.prompt)] == before.prompt
        assert len(after.prompt) == len(before.prompt) + 192
    assert first.asks[0].prompt[:2048] == second.asks[0].prompt[:2048]


@pytest.mark.parametrize("workload", WORKLOADS)
def test_seeds_and_scales(workload: str) -> None:
    small = Sizes(vocab=300, scale=0.01, length=0.05)
    made = make_sessions(workload, small, 7)
    assert made == make_sessions(workload, small, 7)
    assert made != make_sessions(workload, small, 8)
    ids = {token for session in made for ask in session.asks for token in ask.prompt}
    assert min(ids) >= 200 and max(ids) < 299
    assert all(ask.max_tokens >= 1 and ask.prompt for session in made for ask in session.asks)


def test_arrivals_come_at_the_rate() -> None:
    starts = [session.start_s for session in make_sessions("random", Sizes(48000, 8.0, 0.01), 1, rate=50)]
    assert starts == sorted(starts)
    assert len(starts) / starts[-1] == pytest.approx(50, rel=0.1)
    assert len(set(starts)) == len(starts)


def test_an_unknown_workload_is_refused() -> None:
    with pytest.raises(ConfigError, match="--workload rnadom: no such workload; there are single, random"):
        make_sessions("rnadom", FULL, 1)
