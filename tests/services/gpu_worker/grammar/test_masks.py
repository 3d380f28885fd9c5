"""Rows filled together are the rows that each would fill alone."""

import functools
import random

import pytest

from services.gpu_worker.grammar import xgrammar_matcher
from services.gpu_worker.grammar.guide import Guide
from services.gpu_worker.grammar.masks import MaskPool
from services.gpu_worker.grammar.matcher import empty_masks
from tests.services.gpu_worker.grammar import toy
from tests.services.gpu_worker.grammar.toy import END, encode

PATTERNS = ["[0-9]+", "(the )*name", "[a-z]{3}x", "é|ê"]


def guides_in(pool: MaskPool, seats: list[int], stops: tuple[int, ...]) -> list[tuple[int, Guide]]:
    guides = []
    for seat in seats:
        compiled = toy.regex(PATTERNS[seat % len(PATTERNS)])
        guide = Guide(compiled, stops, toy.vocabulary(), toy.vocabulary().vocab_size, pool.row(seat))
        guides.append((seat, guide))
    return guides


@pytest.mark.parametrize("stops", [(END,), ()], ids=["stops", "no stops"])
@pytest.mark.parametrize("worth_threads_s", [0.0, 1e9], ids=["threads", "one thread"])
def test_rows_are_those_that_each_guide_fills_alone(
    monkeypatch: pytest.MonkeyPatch, worth_threads_s: float, stops: tuple[int, ...]
) -> None:
    monkeypatch.setattr(xgrammar_matcher, "WORTH_THREADS_S", worth_threads_s)
    monkeypatch.setattr(xgrammar_matcher, "_filler", functools.cache(xgrammar_matcher._Filler))
    monkeypatch.setattr(xgrammar_matcher.os, "sched_getaffinity", lambda _: set(range(8)))
    pool = MaskPool(empty_masks(16, toy.vocabulary().vocab_size))
    seats = [11, 2, 7, 0, 5]
    guides = guides_in(pool, seats, stops)
    rng = random.Random(1)
    for _ in range(6):
        pool.start(guides).result()
        for seat, guide in guides:
            row = pool.row(seat).copy()
            guide.is_filled = False
            guide.fill()
            assert (row == pool.row(seat)).all()
            choices = sorted(toy.allowed(row) - {END})
            if choices:
                assert guide.accept(rng.choice(choices))


def test_a_filled_row_is_not_filled_again() -> None:
    pool = MaskPool(empty_masks(2, toy.vocabulary().vocab_size))
    ((_, guide),) = guides_in(pool, [1], (END,))
    guide.fill()
    pool.row(1)[:] = 7
    pool.start([(1, guide)]).result()
    assert (pool.row(1) == 7).all()
    assert guide.accept(encode("n")[0])
    pool.start([(1, guide)]).result()
    assert not (pool.row(1) == 7).all()
