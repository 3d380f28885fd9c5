"""Sampling kernels against the CPU's sampler, token by token."""

import random
from collections import Counter

import pytest
import torch
from msgspec import structs
from torch import Tensor

from services.gpu_worker.kernels.sample import SampleScratch, sample_reference
from shared.messages import Sampling
from tests.services.gpu_worker.kernels.sampling_testing import a_table, sample_all, sample_on_cpu

KINDS = {
    "greedy": Sampling(temperature=0.0),
    "unfiltered": Sampling(),
    "hot": Sampling(temperature=3.0),
    "top_k 1": Sampling(top_k=1),
    "top_k 7": Sampling(top_k=7, temperature=1.5),
    "top_k 300": Sampling(top_k=300, temperature=4.0),
    "top_k beyond": Sampling(top_k=100_000),
    "top_p 0": Sampling(top_p=0.0),
    "top_p .5": Sampling(top_p=0.5),
    "top_p .95": Sampling(top_p=0.95, temperature=2.0),
    "top_p .9999": Sampling(top_p=0.9999, temperature=5.0),
    "min_p": Sampling(min_p=0.05, temperature=2.0),
    "min_p 1": Sampling(min_p=1.0),
    "all": Sampling(top_k=20, top_p=0.9, min_p=0.01, temperature=1.3),
    "all, loose": Sampling(top_k=200, top_p=0.96875, min_p=0.001, temperature=2.5),
}


def some_logits(num_rows: int, vocab_size: int, spread: float, device: torch.device, *, ties: bool = False) -> Tensor:
    logits = torch.randn(num_rows, vocab_size) * spread
    return ((logits * 4).round() / 4 if ties else logits).to(device)


def check(logits: Tensor, samplings: list[Sampling], indices: list[int], scratch: SampleScratch | None = None) -> None:
    table, seats = a_table(samplings, logits.device, indices)
    got, wanted = sample_all(logits, seats, table, scratch), sample_on_cpu(logits, samplings, indices)
    different = [(i, samplings[i], got[i], wanted[i]) for i in range(len(got)) if got[i] != wanted[i]]
    assert not different, f"{len(different)} rows differ: {different[:3]}"


@pytest.mark.parametrize(("vocab_size", "spread"), [(100, 3.0), (1023, 0.3), (3000, 3.0)])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_the_cpu(kind: str, vocab_size: int, spread: float, device: torch.device) -> None:
    num_rows = 2
    samplings = [structs.replace(KINDS[kind], seed=random.Random(i).getrandbits(63)) for i in range(num_rows)]
    indices = [random.Random(kind + str(i)).randrange(5000) for i in range(num_rows)]
    check(some_logits(num_rows, vocab_size, spread, device), samplings, indices)


@pytest.mark.parametrize(
    ("kind", "capacity"),
    [(kind, 16) for kind in KINDS if kind not in ("greedy", "unfiltered", "hot")]
    + [(kind, 128) for kind in ("top_k 7", "top_k 300", "top_p .5", "all, loose")],
)
def test_equal_logits_go_by_id(kind: str, capacity: int, device: torch.device) -> None:
    """With little room for candidates the row itself is searched; with more, the many equal ones are sorted."""
    samplings = [structs.replace(KINDS[kind], seed=1000 + i) for i in range(2)]
    logits = some_logits(2, 100, 0.5, device, ties=True)
    logits[1] = 0.0
    scratch = SampleScratch.allocate(2, 100, device, block=64, bins=64, capacity=capacity)
    check(logits, samplings, [3, 4], scratch)


@pytest.mark.parametrize("capacity", [16, 128])
def test_a_batch_of_all_kinds(capacity: int, device: torch.device) -> None:
    draw = random.Random(5)
    samplings = [
        Sampling(
            temperature=draw.choice([0.0, 0.3, 0.7, 1.0, 1.8]),
            top_k=draw.choice([0, 0, 1, 5, 40, 900]),
            top_p=draw.choice([1.0, 1.0, 0.1, 0.8, 0.99]),
            min_p=draw.choice([0.0, 0.0, 0.02, 0.3]),
            seed=draw.getrandbits(64),
        )
        for _ in range(40)
    ]
    logits = some_logits(40, 600, 2.0, device)
    scratch = SampleScratch.allocate(40, 600, device, block=512, bins=256, capacity=capacity)
    check(logits, samplings, [draw.randrange(10_000) for _ in samplings], scratch)


def test_tokens_follow_the_distribution(device: torch.device) -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, 3.0, -1.0], device=device).log_softmax(-1)
    num_rows = 80
    for sampling in (Sampling(), Sampling(top_k=3)):
        samplings = [structs.replace(sampling, seed=i) for i in range(num_rows)]
        table, seats = a_table(samplings, device)
        scratch = SampleScratch.allocate(num_rows, 5, device, block=16, bins=16, capacity=16)
        counts = Counter(sample_all(logits.expand(num_rows, 5).contiguous(), seats, table, scratch))
        kept = sorted(range(5), key=lambda token: -float(logits[token]))
        kept = kept[: sampling.top_k or 5]
        shares = logits[kept].exp() / logits[kept].exp().sum()
        assert set(counts) <= set(kept)
        for token, share in zip(kept, shares.tolist(), strict=True):
            spread = (share * (1 - share) / num_rows) ** 0.5
            assert abs(counts[token] / num_rows - share) < 4 * spread


def test_a_token_depends_on_its_own_row_only(device: torch.device) -> None:
    samplings = [structs.replace(sampling, seed=i) for i, sampling in enumerate(list(KINDS.values())[1::2])]
    logits = some_logits(len(samplings), 1500, 1.0, device)
    table, seats = a_table(samplings, device)
    together = sample_all(logits, seats, table)
    order = torch.randperm(len(samplings))
    mixed = sample_all(logits[order.to(device)], seats[order.to(device)], table)
    assert mixed == [together[i] for i in order.tolist()]
    assert [sample_all(logits[i : i + 1], seats[i : i + 1], table)[0] for i in range(len(samplings))] == together


def test_rows_of_no_numbers_and_padding(device: torch.device) -> None:
    kinds = [KINDS["greedy"], KINDS["unfiltered"], KINDS["all"]]
    spoilers = [torch.nan, torch.inf, -torch.inf]
    samplings = [kind for kind in kinds for _ in range(4)]
    logits = some_logits(12, 600, 1.0, device)
    for k in range(3):
        for s, spoiler in enumerate(spoilers):
            row = logits[4 * k + s]
            row[599 if spoiler != -torch.inf else slice(None)] = spoiler
    table, seats = a_table(samplings, device)
    got = sample_all(logits, seats, table)
    assert [got[i] for i in range(12) if i % 4 < 3] == [-1] * 9
    assert got == sample_on_cpu(logits, samplings)
    padded = seats.clone()
    padded[[3, 7, 11]] = -1
    assert sample_all(logits, padded, table) == [-1] * 12


def test_masked_tokens_are_never_drawn(device: torch.device) -> None:
    samplings = [structs.replace(sampling, seed=i) for i, sampling in enumerate(KINDS.values())]
    logits = some_logits(len(samplings), 900, 1.0, device)
    logits[:, :800] = -torch.inf
    logits[:, 850:890] = -torch.inf
    check(logits, samplings, [7] * len(samplings))
    logits[:, 801:] = -torch.inf  # one token is left
    table, seats = a_table(samplings, device)
    assert sample_all(logits, seats, table) == [800] * len(samplings)


def test_reference_is_what_the_cpu_does(device: torch.device) -> None:
    samplings = [structs.replace(sampling, seed=i) for i, sampling in enumerate(KINDS.values())]
    logits = some_logits(len(samplings), 400, 2.0, device, ties=True)
    table, seats = a_table(samplings, device, list(range(len(samplings))))
    wanted = sample_on_cpu(logits, samplings, list(range(len(samplings))))
    assert sample_reference(logits, seats, table).tolist() == wanted


@pytest.mark.gpu
@pytest.mark.parametrize("vocab_size", [49_152, 128_256, 262_208])
@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_large_vocabularies(spread: float, vocab_size: int, device: torch.device) -> None:
    samplings = [structs.replace(kind, seed=97 * i) for i in range(8) for kind in KINDS.values()]
    logits = some_logits(len(samplings), vocab_size, spread, device)
    scratch = SampleScratch.allocate(len(samplings), vocab_size, device)
    table, seats = a_table(samplings, device)
    got, wanted = sample_all(logits, seats, table, scratch), sample_on_cpu(logits, samplings)
    # float32 exponentials beside float64 ones: a draw that falls within 1e-6 of a boundary may go the other way.
    assert sum(a != b for a, b in zip(got, wanted, strict=True)) <= 1
    for _ in range(5):
        assert sample_all(logits, seats, table, scratch) == got
