"""The sampler against plain float64 formulas, one row at a time."""

import math
from array import array

import numpy as np
import pytest
import torch
from msgspec import structs

from services.gpu_worker.grammar.masks import Masks
from services.gpu_worker.philox import uniform
from services.gpu_worker.sampler import Sampler
from services.gpu_worker.sampling_state import SamplingState
from shared.errors import InvalidRequest
from shared.messages import Sampling

GREEDY = Sampling(temperature=0.0)


def a_row(
    sampling: Sampling,
    vocab_size: int,
    prompt: list[int] | None = None,
    outputs: list[int] | None = None,
    stop: list[int] | None = None,
) -> SamplingState:
    return SamplingState(sampling, stop or [], array("i", prompt or [0]), array("i", outputs or []), vocab_size)


def sample_one(logits: torch.Tensor, row: SamplingState) -> int | None:
    return Sampler(logits.shape[0]).sample(logits[None].clone(), [row])[0]


def naive_order(logits: np.ndarray) -> list[int]:
    return sorted(range(len(logits)), key=lambda token: (-logits[token], token))


def naive_distribution(logits: np.ndarray, sampling: Sampling) -> dict[int, float]:
    """Token -> probability, of the tokens that the filters leave, in order of draw."""
    masses = [math.exp((float(x) - float(logits.max())) / sampling.temperature) for x in logits]
    total = math.fsum(masses)
    kept: dict[int, float] = {}
    reached = 0.0
    for rank, token in enumerate(naive_order(logits)):
        p = masses[token] / total
        if rank > 0 and (
            (sampling.top_k and rank >= sampling.top_k)
            or (sampling.top_p < 1 and reached >= sampling.top_p)
            or masses[token] < sampling.min_p
        ):
            break
        kept[token] = p
        reached += p
    share = math.fsum(kept.values())
    return {token: p / share for token, p in kept.items()}


def naive_draw(logits: np.ndarray, sampling: Sampling, index: int) -> int:
    u = float(uniform(np.array([sampling.seed], np.uint64), np.array([index], np.uint64))[0])
    reached = 0.0
    for token, p in naive_distribution(logits, sampling).items():
        reached += p
        if reached > u:
            return token
    return token


def random_logits(seed: int, vocab_size: int, *, ties: bool = False) -> torch.Tensor:
    logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed)) * 3
    return (logits * 2).round() / 2 if ties else logits


FILTERS = [
    Sampling(top_k=1),
    Sampling(top_k=5),
    Sampling(top_k=300),
    Sampling(top_p=0.5),
    Sampling(top_p=0.95, temperature=2.0),
    Sampling(top_p=0.9999, temperature=5.0),
    Sampling(min_p=0.1),
    Sampling(min_p=1e-4, temperature=3.0),
    Sampling(top_k=40, top_p=0.9, min_p=0.05, temperature=1.5),
    Sampling(top_k=10_000, top_p=0.3),
    Sampling(top_p=1e-6),
    Sampling(temperature=0.3, top_k=7),
]


@pytest.mark.parametrize("vocab_size", [1, 7, 300, 2048, 3001])
@pytest.mark.parametrize("ties", [False, True], ids=["", "ties"])
def test_filtered_draws_equal_the_naive_ones(vocab_size: int, ties: bool) -> None:
    """Vocabularies with and without room for the bound on the k-th logit; ties at the filters' ends."""
    logits = torch.stack([random_logits(i, vocab_size, ties=ties) for i in range(len(FILTERS))])
    for index in range(4):
        samplings = [structs.replace(one, seed=11 * i + index) for i, one in enumerate(FILTERS)]
        rows = [a_row(one, vocab_size, outputs=[0] * index) for one in samplings]
        drawn = Sampler(vocab_size).sample(logits.clone(), rows)
        assert drawn == [naive_draw(logits[i].numpy(), one, index) for i, one in enumerate(samplings)]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.6),
        Sampling(top_k=4),
        Sampling(top_p=0.8),
        Sampling(min_p=0.2, temperature=2.0),
        Sampling(top_k=9, top_p=0.9, min_p=0.01),
    ],
    ids=["plain", "cool", "top_k", "top_p", "min_p", "all"],
)
def test_draws_follow_the_distribution(sampling: Sampling) -> None:
    vocab_size, draws = 12, 20_000
    logits = random_logits(3, vocab_size) / 2
    rows = [a_row(structs.replace(sampling, seed=i), vocab_size) for i in range(draws)]
    drawn = Sampler(vocab_size).sample(logits.repeat(draws, 1), rows)
    counts = np.bincount(np.array(drawn, np.int64), minlength=vocab_size)
    expected = naive_distribution(logits.numpy(), sampling)
    assert {int(token) for token in counts.nonzero()[0]} <= expected.keys()
    chi_square = sum((counts[token] - draws * p) ** 2 / (draws * p) for token, p in expected.items())
    freedom = len(expected) - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom) + 4  # p below 0.001 for 1 to 11 degrees


@pytest.mark.parametrize("vocab_size", [1, 255, 256, 257, 1000])
def test_unfiltered_draws_invert_the_cumulative_distribution(vocab_size: int) -> None:
    logits = random_logits(4, vocab_size)
    masses = np.exp(logits.numpy().astype(np.float64) - float(logits.max())).cumsum()
    uniforms = uniform(np.arange(300, dtype=np.uint64), np.zeros(300, np.uint64)).astype(np.float64)
    rows = [a_row(Sampling(seed=seed), vocab_size) for seed in range(300)]
    drawn = Sampler(vocab_size).sample(logits.repeat(300, 1), rows)
    assert drawn == [int(np.searchsorted(masses, u * masses[-1], side="right")) for u in uniforms]


def test_top_k_keeps_exactly_k_of_equal_logits() -> None:
    logits = torch.zeros(1000)
    rows = [a_row(Sampling(top_k=3, seed=seed), 1000) for seed in range(200)]
    drawn = set(Sampler(1000).sample(logits.expand(200, 1000).clone(), rows))
    assert drawn == {0, 1, 2}


def test_greedy_takes_the_likeliest_whatever_the_seed() -> None:
    logits = random_logits(1, 100)
    for seed in range(5):
        row = a_row(Sampling(temperature=1e-6, seed=seed, top_p=0.1), 100)
        assert sample_one(logits, row) == int(logits.argmax())


def a_mixed_batch(vocab_size: int) -> tuple[torch.Tensor, list[SamplingState]]:
    samplings = [
        GREEDY,
        Sampling(seed=1),
        Sampling(seed=2, top_k=20),
        Sampling(seed=3, top_p=0.9, temperature=1.5),
        Sampling(seed=4, min_p=0.05, presence_penalty=1.0, frequency_penalty=0.5),
        Sampling(temperature=0.0, repetition_penalty=1.3),
        Sampling(seed=5, logit_bias={3: 5.0, 4: -100.0}),
        Sampling(seed=6, min_tokens=100),
    ]
    rows = [a_row(one, vocab_size, [1, 2, 3], [5, 5, 6], stop=[7]) for one in samplings]
    return torch.stack([random_logits(i, vocab_size) for i in range(len(rows))]), rows


def test_a_row_gets_the_same_token_in_any_company() -> None:
    vocab_size = 500
    logits, rows = a_mixed_batch(vocab_size)
    together = Sampler(vocab_size).sample(logits.clone(), rows)
    assert None not in together
    alone = [sample_one(logits[i], row) for i, row in enumerate(rows)]
    assert together == alone
    order = [5, 0, 7, 3, 2, 6, 1, 4]
    shuffled = Sampler(vocab_size).sample(logits[order].clone(), [rows[i] for i in order])
    assert shuffled == [together[i] for i in order]


def test_a_row_taken_over_goes_on_as_if_it_had_never_moved() -> None:
    vocab_size = 200
    sampling = Sampling(seed=9, temperature=1.2, top_p=0.95, repetition_penalty=1.1, frequency_penalty=0.3)
    logits = [random_logits(i, vocab_size) for i in range(20)]
    row = a_row(sampling, vocab_size, [1, 2])
    tokens: list[int] = []
    for step in logits:
        token = sample_one(step, row)
        assert token is not None
        tokens.append(token)
        row.accept(token)
    moved = a_row(sampling, vocab_size, [1, 2], tokens[:8])
    for step, expected in zip(logits[8:], tokens[8:], strict=True):
        assert sample_one(step, moved) == expected
        moved.accept(expected)


def test_seeds_and_indices_give_different_draws() -> None:
    logits = torch.zeros(10_000)
    sampler, many = Sampler(10_000), logits.repeat(50, 1)
    by_seed = set(sampler.sample(many.clone(), [a_row(Sampling(seed=seed), 10_000) for seed in range(50)]))
    by_index = set(sampler.sample(many.clone(), [a_row(Sampling(seed=1), 10_000, outputs=[0] * i) for i in range(50)]))
    assert len(by_seed) > 45
    assert len(by_index) > 45
    large = Sampling(seed=2**63 - 1)
    assert sample_one(logits, a_row(large, 10_000)) == sample_one(logits, a_row(large, 10_000))


def adjusted(logits: torch.Tensor, row: SamplingState) -> torch.Tensor:
    """The logits as the sampler leaves them."""
    out = logits[None].clone()
    Sampler(logits.shape[0]).sample(out, [row])
    return out[0]


def test_penalties_follow_their_formulas() -> None:
    vocab_size = 50
    logits = random_logits(2, vocab_size)
    prompt, outputs = [1, 2, 3, 3], [3, 4, 4, 4]
    sampling = Sampling(presence_penalty=0.7, frequency_penalty=-0.4, repetition_penalty=1.5)
    row = a_row(sampling, vocab_size, prompt, outputs[:1])
    for token in outputs[1:]:
        row.accept(token)
    expected = logits.double().tolist()
    for token in range(vocab_size):
        count = outputs.count(token)
        expected[token] -= 0.7 * (count > 0) - 0.4 * count
        if token in prompt or token in outputs:
            expected[token] = expected[token] / 1.5 if expected[token] > 0 else expected[token] * 1.5
    assert adjusted(logits, row).tolist() == pytest.approx(expected, abs=1e-5)


def test_presence_and_frequency_do_not_see_the_prompt() -> None:
    logits = random_logits(2, 50)
    row = a_row(Sampling(presence_penalty=2.0, frequency_penalty=2.0), 50, prompt=[1, 2, 3])
    assert torch.equal(adjusted(logits, row), logits)


def test_penalties_count_more_tokens_than_the_first_allocation_holds() -> None:
    vocab_size = 300
    row = a_row(Sampling(frequency_penalty=1.0), vocab_size)
    for token in [*range(250), *range(100)]:
        row.accept(token)
    expected = [-2.0] * 100 + [-1.0] * 150 + [0.0] * 50
    assert adjusted(torch.zeros(vocab_size), row).tolist() == expected


def test_bias_is_added_and_can_bar_a_token() -> None:
    logits = torch.zeros(10)
    row = a_row(Sampling(logit_bias={2: 4.0, 3: -100.0, 5: 0.5}), 10)
    assert adjusted(logits, row).tolist() == [0, 0, 4.0, -100.0, 0, 0.5, 0, 0, 0, 0]


def test_bias_of_a_token_outside_the_vocabulary_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="token 10") as caught:
        a_row(Sampling(logit_bias={10: 1.0}), 10)
    assert caught.value.param == "logit_bias"


def test_stop_ids_are_barred_until_min_tokens() -> None:
    logits = torch.zeros(10)
    logits[4] = 50.0
    row = a_row(Sampling(temperature=0.0, min_tokens=2), 10, stop=[4, 99])
    sampler = Sampler(10)
    for _ in range(2):
        token = sampler.sample(logits[None].clone(), [row])[0]
        assert token == 0
        row.accept(token)
    assert sampler.sample(logits[None].clone(), [row]) == [4]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(), Sampling(top_p=0.9)], ids=["greedy", "plain", "filtered"])
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers_spoil_their_own_row_only(sampling: Sampling, broken: float) -> None:
    logits = torch.stack([random_logits(i, 40) for i in range(3)])
    rows = [a_row(sampling, 40) for _ in range(3)]
    sound = Sampler(40).sample(logits.clone(), rows)
    if broken == -math.inf:
        logits[1] = broken
    else:
        logits[1, 17] = broken
    assert Sampler(40).sample(logits.clone(), rows) == [sound[0], None, sound[2]]


def test_minus_infinity_is_never_drawn() -> None:
    logits = torch.full((400,), -math.inf)
    logits[[3, 300]] = 0.0
    for sampling in (Sampling(), Sampling(top_k=10), Sampling(top_p=0.99), Sampling(temperature=100.0)):
        rows = [a_row(structs.replace(sampling, seed=seed), 400) for seed in range(50)]
        assert set(Sampler(400).sample(logits.repeat(50, 1), rows)) == {3, 300}


@pytest.mark.parametrize("vocab_size", [64, 97, 1000])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_masked_row_draws_from_what_is_allowed_and_the_others_do_not_feel_it(
    vocab_size: int, temperature: float
) -> None:
    rng = np.random.default_rng(vocab_size)
    rows = [a_row(Sampling(temperature=temperature, seed=i, top_k=7 * (i % 2)), vocab_size) for i in range(12)]
    logits = torch.from_numpy(rng.normal(size=(len(rows), vocab_size)).astype(np.float32))
    free = Sampler(vocab_size).sample(logits.clone(), rows)
    width = -(-vocab_size // 32)
    masked = [3, 4, 9]
    bits = rng.integers(-(2**31), 2**31, (3, width)).astype(np.int32) & rng.integers(0, 2**31, (3, width)).astype(
        np.int32
    )
    sampled = Sampler(vocab_size).sample(logits.clone(), rows, Masks(masked, np.arange(len(bits)), bits))
    for row, (token, alone) in enumerate(zip(sampled, free, strict=True)):
        if row not in masked:
            assert token == alone
            continue
        allowed = {t for t in range(vocab_size) if bits[masked.index(row), t // 32] >> (t % 32) & 1}
        assert token in allowed
        rest = logits[row].clone()
        rest[[t for t in range(vocab_size) if t not in allowed]] = -math.inf
        assert token == sample_one(rest, rows[row])


def test_a_row_that_may_draw_nothing_is_no_number_and_spoils_no_other() -> None:
    rows = [a_row(GREEDY, 40), a_row(Sampling(temperature=1.0), 40), a_row(GREEDY, 40)]
    logits = torch.zeros(3, 40)
    bits = np.zeros((2, 2), np.int32)
    bits[1, 1] = ~0xFF  # nothing but bits past the vocabulary's end
    assert Sampler(40).sample(logits, rows, Masks([1, 2], np.arange(2), bits)) == [0, None, None]


def test_a_mask_does_not_let_in_what_is_barred() -> None:
    row = a_row(Sampling(temperature=0.0, min_tokens=3), 40, stop=[5])
    bits = np.array([[1 << 5 | 1 << 9, 0]], np.int32)
    assert Sampler(40).sample(torch.zeros(1, 40), [row], Masks([0], np.arange(1), bits)) == [9]
