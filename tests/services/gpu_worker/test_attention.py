"""Attention over pages against its definition, on random shapes, with everything unseen filled with NaN."""

import random
from array import array

import pytest
import torch

from services.gpu_worker import attention_plan
from services.gpu_worker.attention import attend, attend_reference
from services.gpu_worker.attention_plan import batch_order, plan_attention
from services.gpu_worker.kv_cache import KVShape, LayerPages, PagePool
from services.gpu_worker.step import SequenceStep

CPU = torch.device("cpu")
# (start, tokens) of each sequence of a batch
BATCHES = {
    "one-token": [(0, 1)],
    "decode": [(7, 1)],
    "decode-at-page-border": [(15, 1), (16, 1), (31, 1), (32, 1)],
    "decode-same-length": [(20, 1)] * 5,
    "decode-unlike-lengths": [(0, 1), (1, 1), (40, 1), (200, 1), (210, 1), (90, 1), (219, 1)],
    "prompt": [(0, 33)],
    "chunk": [(37, 18)],
    "several-blocks": [(20, 150), (3, 1), (0, 257)],
    "mixed": [(5, 1), (0, 9), (60, 1), (16, 16), (100, 30), (61, 1), (0, 1)],
}


def make_batch(
    spans: list[tuple[int, int]], page_size: int, seed: int, *, shape: KVShape, is_contiguous: bool, dtype: torch.dtype
) -> tuple[LayerPages, list[SequenceStep]]:
    """A layer whose written slots are random and whose other slots are NaN, and the steps in batch order."""
    rng = random.Random(seed)
    num_pages = sum(-(-(start + count) // page_size) for start, count in spans) + 3
    pool = PagePool(num_pages, page_size, shape, dtype, CPU)
    pool.storage.fill_(torch.nan)
    layer = pool.layers[0]
    free = list(range(num_pages))
    if not is_contiguous:
        rng.shuffle(free)
    steps = []
    for start, count in spans:
        table = [free.pop(0) for _ in range(-(-(start + count) // page_size))]
        slots = torch.tensor([table[p // page_size] * page_size + p % page_size for p in range(start + count)])
        size = (len(slots), shape.num_kv_heads, shape.head_dim)
        layer.write(slots, torch.randn(size, dtype=dtype), torch.randn(size, dtype=dtype))
        steps.append(SequenceStep(array("i", [0] * count), start, array("i", table), True))
    return layer, [steps[i] for i in batch_order(steps, page_size)]


@pytest.mark.parametrize("window", [None, 1, 5, 16, 50], ids=lambda window: f"window-{window}")
@pytest.mark.parametrize("page_size", [1, 7, 16])
@pytest.mark.parametrize("spans", BATCHES.values(), ids=BATCHES)
def test_matches_reference(spans: list[tuple[int, int]], page_size: int, window: int | None) -> None:
    torch.manual_seed(0)
    heads, kv_heads, head_dim = random.Random(page_size).choice([(4, 4, 8), (6, 2, 10), (9, 3, 16), (5, 1, 24)])
    shape = KVShape(1, kv_heads, head_dim)
    for is_contiguous in (False, True):
        layer, steps = make_batch(spans, page_size, 1, shape=shape, is_contiguous=is_contiguous, dtype=torch.float32)
        query = torch.randn(sum(len(step.token_ids) for step in steps), heads, head_dim)
        plan = plan_attention(steps, page_size, window, query.dtype, CPU)
        expected = attend_reference(query, layer, steps, page_size, 0.3, window)
        torch.testing.assert_close(attend(query, layer, plan, 0.3), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 16], ids=lambda window: f"window-{window}")
@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("spans", BATCHES.values(), ids=BATCHES)
def test_rounded_scores_match_reference(spans: list[tuple[int, int]], page_size: int, window: int | None) -> None:
    torch.manual_seed(0)
    shape = KVShape(1, 3, 16)
    for is_contiguous, dtype in ((False, torch.float32), (True, torch.float32), (False, torch.bfloat16)):
        layer, steps = make_batch(spans, page_size, 1, shape=shape, is_contiguous=is_contiguous, dtype=dtype)
        query = torch.randn(sum(len(step.token_ids) for step in steps), 9, 16, dtype=dtype)
        plan = plan_attention(steps, page_size, window, dtype, CPU, can_split=True)
        expected = attend_reference(query, layer, steps, page_size, 0.3, window).float()
        actual = attend(query, layer, plan, 0.3, rounds_scores=True).float()
        error = (actual - expected).norm() / expected.norm()
        assert error < {torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_softcap_and_half_precision_match_reference(dtype: torch.dtype, softcap: float | None) -> None:
    torch.manual_seed(0)
    layer, steps = make_batch(BATCHES["mixed"], 16, 2, shape=KVShape(1, 2, 16), is_contiguous=False, dtype=dtype)
    query = torch.randn(sum(len(step.token_ids) for step in steps), 6, 16, dtype=dtype)
    plan = plan_attention(steps, 16, 40, dtype, CPU)
    actual = attend(query, layer, plan, 0.3, softcap)
    expected = attend_reference(query, layer, steps, 16, 0.3, 40, softcap)
    assert actual.dtype is dtype
    error = (actual.float() - expected.float()).norm() / expected.float().norm()
    assert error < {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]


def test_large_groups_are_cut_to_bound_the_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_plan, "_MOST_TOKENS", 100)
    torch.manual_seed(0)
    spans = [(39, 1)] * 7
    layer, steps = make_batch(spans, 16, 3, shape=KVShape(1, 2, 8), is_contiguous=False, dtype=torch.float32)
    query = torch.randn(7, 4, 8)
    plan = plan_attention(steps, 16, None, query.dtype, CPU)
    assert [group.count for group in plan.groups] == [2, 2, 2]
    assert [chunk.count for chunk in plan.chunks] == [1]
    expected = attend_reference(query, layer, steps, 16, 0.3)
    torch.testing.assert_close(attend(query, layer, plan, 0.3), expected, rtol=1e-5, atol=1e-5)


# A tree of prefixes: (tokens that the parent and this have in common, tokens, parent) and the tokens computed in a step
TREES = {
    "pair": [(0, 300, None), (290, 310, 0)],
    "three-and-a-pair": [(0, 300, None), (300, 301, 0), (270, 333, 0), (0, 420, None), (400, 402, 3)],
    "levels": [(0, 700, None), (300, 660, 0), (650, 655, 1), (640, 690, 0), (310, 320, 0), (650, 1000, 1)],
    "beside-others": [(0, 1, None), (0, 40, None), (0, 310, None), (305, 420, 2), (0, 200, None), (0, 41, None)],
    "unlike-trees": [(0, 300, None), (299, 300, 0), (0, 900, None), (880, 901, 2)],
}


@pytest.mark.parametrize("window", [None, 2000, 290], ids=lambda window: f"window-{window}")
@pytest.mark.parametrize("page_size", [1, 7, 16])
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_shared_prefixes_match_reference(
    tree: list[tuple[int, int, int | None]], page_size: int, window: int | None
) -> None:
    """The sequence that fills a shared page may do so in the same step; a prompt of several tokens is beside them."""
    rng = random.Random(0)
    torch.manual_seed(0)
    shape = KVShape(1, 2, 16)
    pool = PagePool(6000 // page_size, page_size, shape, torch.float32, CPU)
    pool.storage.fill_(torch.nan)
    layer = pool.layers[0]
    free = rng.sample(range(pool.num_pages), pool.num_pages)
    tables: list[list[int]] = []
    steps = []
    for common, length, parent in [*tree, (0, 20, None)]:
        kept = [] if parent is None else tables[parent][: common // page_size]
        tables.append(kept + [free.pop() for _ in range(-(-length // page_size) - len(kept))])
        first_new = len(kept) * page_size
        slots = torch.tensor([tables[-1][p // page_size] * page_size + p % page_size for p in range(first_new, length)])
        layer.write(slots, torch.randn(len(slots), 2, 16), torch.randn(len(slots), 2, 16))
        count = 20 if (common, length, parent) == (0, 20, None) else 1
        steps.append(SequenceStep(array("i", [0] * count), length - count, array("i", tables[-1]), True))
    rng.shuffle(steps)
    steps = [steps[i] for i in batch_order(steps, page_size)]
    query = torch.randn(len(tree) + 20, 6, 16)
    expected = attend_reference(query, layer, steps, page_size, 0.3, window)
    split = plan_attention(steps, page_size, window, query.dtype, CPU, can_split=True)
    whole = plan_attention(steps, page_size, window, query.dtype, CPU)
    assert bool(split.splits) == (window != 290)
    assert not whole.splits
    for plan in (split, whole):
        actual = attend(query, layer, plan, 0.3, rounds_scores=True)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(attend(query, layer, whole, 0.3), expected, rtol=1e-5, atol=1e-5)
