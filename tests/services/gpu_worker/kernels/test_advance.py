from dataclasses import fields

import pytest
import torch

from services.gpu_worker.kernels.advance import SeatState, advance, advance_reference
from services.gpu_worker.kernels.penalties import Penalties
from tests.services.gpu_worker.kernels.kernel_testing import poison


def a_state(num_seats: int, num_rows: int, device: torch.device) -> SeatState:
    def numbers() -> torch.Tensor:
        return torch.randint(0, 1000, (num_seats,), dtype=torch.int32, device=device)

    history = poison(torch.empty(3, num_rows + 2, dtype=torch.int32, device=device))
    return SeatState(numbers(), numbers(), numbers(), history, torch.tensor([1], dtype=torch.int32, device=device))


def copy_of(record: SeatState | Penalties) -> list[torch.Tensor]:
    return [getattr(record, field.name).clone() for field in fields(record)]


@pytest.mark.parametrize("num_rows", [1, 5, 33])
@pytest.mark.parametrize("has_penalties", [False, True])
def test_matches_reference_over_a_whole_ring(num_rows: int, has_penalties: bool, device: torch.device) -> None:
    num_seats, vocab_size = num_rows + 4, 50
    state = a_state(num_seats, num_rows, device)
    penalties = Penalties.allocate(num_seats, 4, vocab_size, device)
    penalties.rows[torch.randperm(num_seats)[:4].to(device)] = torch.arange(4, dtype=torch.int32, device=device)
    wanted_state, wanted_penalties = SeatState(*copy_of(state)), Penalties(*copy_of(penalties))
    for step in range(4):
        seats = torch.randperm(num_seats)[:num_rows].int().to(device)
        tokens = torch.randint(0, vocab_size, (num_rows,), dtype=torch.int32, device=device)
        seats[step % num_rows] = -1 if step == 1 else seats[step % num_rows]
        tokens[0] = -1 if step == 2 else tokens[0]
        advance(tokens, seats, state, penalties if has_penalties else None)
        advance_reference(tokens, seats, wanted_state, wanted_penalties if has_penalties else None)
        for name, got, wanted in zip(
            SeatState.__dataclass_fields__, copy_of(state), copy_of(wanted_state), strict=True
        ):
            assert torch.equal(got, wanted), name
        assert torch.equal(penalties.counts, wanted_penalties.counts)
    assert bool(penalties.counts.any()) == has_penalties
    assert int(state.slot) == 2


def test_a_token_that_is_none_names_no_embedding(device: torch.device) -> None:
    state = a_state(2, 1, device)
    minus_one = torch.tensor([-1], dtype=torch.int32, device=device)
    advance(minus_one, torch.tensor([1], dtype=torch.int32, device=device), state)
    assert int(state.last_token[1]) == 0 and int(state.history[1, 0]) == -1
