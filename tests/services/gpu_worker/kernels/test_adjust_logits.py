"""Penalties, biases, barred stop ids and masks, against the definition and against the CPU's sampler."""

import random
from array import array
from collections import Counter

import pytest
import torch
from torch import Tensor

from services.gpu_worker.kernels.adjust_logits import Masks, NamedTokens, adjust_logits, adjust_logits_reference
from services.gpu_worker.kernels.penalties import Penalties
from services.gpu_worker.sampler import _Batch
from services.gpu_worker.sampling_state import SamplingState
from shared.messages import Sampling
from tests.services.gpu_worker.kernels.kernel_testing import assert_close, poison

SAMPLINGS = [
    Sampling(),
    Sampling(presence_penalty=0.7),
    Sampling(frequency_penalty=0.4, logit_bias={0: 3.0, 99: -2.0}),
    Sampling(repetition_penalty=1.3),
    Sampling(presence_penalty=-0.5, frequency_penalty=0.2, repetition_penalty=0.8, min_tokens=9),
    Sampling(logit_bias={i: float(i) for i in range(90)}, min_tokens=8),
    Sampling(min_tokens=7),  # as many as came out: nothing is barred any more
]
STOP_IDS = [5, 98]


class Rows:
    """The same rows in the tables of the device and as the CPU's states."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        draw = random.Random(3)
        num_rows, num_seats = len(SAMPLINGS), len(SAMPLINGS) + 2
        self.logits = torch.randn(num_rows, vocab_size, device=device) * 2
        self.seats = torch.randperm(num_seats)[:num_rows].int().to(device)
        self.output_index = torch.full((num_seats,), 7, dtype=torch.int32, device=device)
        self.named = NamedTokens.allocate(num_seats, 100, 4, device)
        poison(self.named.bias_ids), poison(self.named.bias_values), poison(self.named.stop_ids)
        self.penalties = Penalties.allocate(num_seats, 5, vocab_size, device)
        poison(self.penalties.counts), poison(self.penalties.seen)
        self.states = []
        for i, (seat, sampling) in enumerate(zip(self.seats.tolist(), SAMPLINGS, strict=True)):
            prompt = array("i", [draw.randrange(vocab_size) for _ in range(30)])
            outputs = array("i", [draw.randrange(vocab_size) for _ in range(5)] * 2)[:7]
            state = SamplingState(sampling, STOP_IDS, prompt, outputs, vocab_size)
            self.states.append(state)
            self._name_tokens(seat, sampling)
            if state.has_penalties:
                self._penalise(seat, i % 5, sampling, prompt, outputs)

    def _name_tokens(self, seat: int, sampling: Sampling) -> None:
        bias = sampling.logit_bias
        self.named.bias_ids[seat, : len(bias)] = torch.tensor(list(bias), dtype=torch.int32)
        self.named.bias_values[seat, : len(bias)] = torch.tensor(list(bias.values()), dtype=torch.float32)
        self.named.bias_counts[seat] = len(bias)
        self.named.stop_ids[seat, : len(STOP_IDS)] = torch.tensor(STOP_IDS, dtype=torch.int32)
        self.named.stop_counts[seat] = len(STOP_IDS)
        self.named.min_tokens[seat] = sampling.min_tokens

    def _penalise(self, seat: int, row: int, sampling: Sampling, prompt: "array[int]", outputs: "array[int]") -> None:
        penalties, vocab_size = self.penalties, self.logits.shape[1]
        penalties.rows[seat] = row
        penalties.presence[seat] = sampling.presence_penalty
        penalties.frequency[seat] = sampling.frequency_penalty
        penalties.repetition[seat] = sampling.repetition_penalty
        penalties.counts[row] = 0
        for token, count in Counter(outputs).items():
            penalties.counts[row, token] = count
        bits = torch.zeros(-(-vocab_size // 32) * 32, dtype=torch.int64)
        if sampling.repetition_penalty != 1.0:
            bits[list(prompt)] = 1
        penalties.seen[row] = (bits.view(-1, 32) << torch.arange(32)).sum(1).to(torch.int32)


def masks_for(rows: Rows, device: torch.device) -> Masks:
    num_rows, vocab_size = rows.logits.shape
    info = torch.iinfo(torch.int32)
    bitmask = torch.randint(info.min, info.max, (4, -(-vocab_size // 32)), dtype=torch.int32, device=device)
    return Masks(bitmask, torch.tensor([i % 5 - 1 for i in range(num_rows)], dtype=torch.int32, device=device))


def adjusted(rows: Rows, *arguments: Penalties | Masks | None) -> Tensor:
    return adjust_logits(rows.logits.clone(), rows.seats, rows.output_index, rows.named, *arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("vocab_size", [100, 2100])
def test_logits_are_those_of_the_cpu(vocab_size: int, device: torch.device) -> None:
    rows = Rows(vocab_size, device)
    wanted = rows.logits.cpu().numpy().copy()
    _Batch(rows.states, vocab_size).adjust(wanted)
    got, wanted = adjusted(rows, rows.penalties, None), torch.from_numpy(wanted)
    assert torch.equal(got.cpu().isinf(), wanted.isinf())
    assert_close("logits", got.cpu().nan_to_num(neginf=0.0), wanted.nan_to_num(neginf=0.0), tolerance=1e-6)


@pytest.mark.parametrize("has_masks", [False, True])
@pytest.mark.parametrize("has_penalties", [False, True])
def test_matches_reference(has_penalties: bool, has_masks: bool, device: torch.device) -> None:
    rows = Rows(333, device)
    rows.seats[2] = -1  # padding
    arguments = (rows.penalties if has_penalties else None, masks_for(rows, device) if has_masks else None)
    wanted = adjust_logits_reference(rows.logits, rows.seats, rows.output_index, rows.named, *arguments)
    got = adjusted(rows, *arguments)
    assert torch.equal(got.isinf(), wanted.isinf())
    assert_close("logits", got.nan_to_num(neginf=0.0), wanted.nan_to_num(neginf=0.0), tolerance=1e-6)
    assert torch.equal(got[2], rows.logits[2])


def test_a_row_that_asks_for_nothing_stays_as_it_is(device: torch.device) -> None:
    rows = Rows(100, device)
    got = adjusted(rows, rows.penalties, None)
    assert torch.equal(got[0], rows.logits[0]) and torch.equal(got[6], rows.logits[6])
