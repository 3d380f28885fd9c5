"""What the device knows of seats with biases and penalties, whatever comes before it is written."""

from array import array

import pytest
import torch

from services.gpu_worker.cuda.special import SpecialSeats
from services.gpu_worker.cuda.staging import Staging
from services.gpu_worker.sequence import Sequence
from shared.messages import Admit, Sampling
from shared.packing import pack_i32
from tests.services.gpu_worker.fake_runner import FakeRunner

V = 100
SEAT = 3


def a_sequence(sampling: Sampling) -> Sequence:
    admit = Admit(
        sequence_id=1,
        shard=0,
        token_ids=pack_i32(array("i", [1, 2])),
        num_prompt=2,
        cached=0,
        page_table=pack_i32(array("i", [0])),
        sampling=sampling,
        stop_token_ids=[],
        max_tokens=5,
    )
    sequence = Sequence.admit(admit, FakeRunner(vocab_size=V), 0.0)
    sequence.seat = SEAT
    return sequence


@pytest.fixture
def seats() -> SpecialSeats:
    return SpecialSeats(5, V, torch.device("cpu"))


@pytest.fixture
def staging() -> Staging:
    return Staging(1 << 16, 3, torch.device("cpu"))


def test_a_seat_has_nothing_of_a_sequence_that_left_before_it_ran(seats: SpecialSeats, staging: Staging) -> None:
    gone = a_sequence(Sampling(temperature=0.0, logit_bias={7: 100.0}, frequency_penalty=1.0))
    seats.take(gone)
    seats.append(gone, [9])
    seats.take(a_sequence(Sampling(temperature=0.0)))
    seats.flush(staging)
    assert seats.named.bias_counts[SEAT] == 0
    assert seats.penalties is None or seats.penalties.rows[SEAT] == -1


def test_a_run_counts_for_penalties_whenever_it_is_appended(seats: SpecialSeats, staging: Staging) -> None:
    sequence = a_sequence(Sampling(temperature=0.0, frequency_penalty=1.0))
    seats.take(sequence)
    seats.append(sequence, [9, 9, 8])
    seats.flush(staging)
    assert seats.penalties is not None
    assert seats.penalties.counts[SEAT, 8:10].tolist() == [1, 2]
    seats.append(sequence, [9])
    seats.flush(staging)
    assert seats.penalties.counts[SEAT, 8:10].tolist() == [1, 3]
