"""Rows of a step, from seats and from the host."""

import pytest
import torch

from services.gpu_worker.kernels.begin_step import begin_step, begin_step_reference


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize(
    ("num_rows", "num_logit_rows", "is_given"), [(1, 1, False), (1, 3, True), (7, 9, True), (131, 40, True)]
)
def test_matches_reference(
    num_rows: int, num_logit_rows: int, is_given: bool, page_size: int, device: torch.device
) -> None:
    num_seats = 2 * (num_rows + num_logit_rows)

    def integers(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, dtype=torch.int32, device=device)

    order = torch.randperm(num_seats, device=device).int()
    seats = torch.where(integers(0, 2, num_rows) == 0, order[:num_rows], -1)
    last_token, page_tables = integers(0, 1000, num_seats), integers(0, 500, num_seats, 8)
    position, output_index = integers(0, 8 * page_size, num_seats), integers(0, 99, num_seats)
    given = logits = None
    if is_given:
        given = torch.full((3, num_rows + 5), -7, dtype=torch.int32, device=device)[:, :num_rows]
        given[0], given[1] = integers(0, 1000, num_rows), integers(0, 8 * page_size, num_rows)
        given[2] = integers(-1, num_seats, num_rows)
        logits = integers(-1, 8 * page_size, 4, num_logit_rows)
        logits[1] = torch.where(integers(0, 3, num_logit_rows) > 0, order[num_rows : num_rows + num_logit_rows], -1)
    state = [position.clone(), output_index.clone()]
    expected = begin_step_reference(seats, last_token, *state, page_tables, given, logits, page_size)
    out = [torch.full((num_rows + 1,), -77, dtype=torch.int32, device=device) for _ in range(4)]
    begin_step(
        *(seats, last_token, position, output_index, page_tables, given, logits, page_size),
        *(one[:num_rows] for one in out),
    )
    for name, got, want in zip(("token_ids", "positions", "slots", "lengths"), out, expected, strict=True):
        assert got[:num_rows].tolist() == want.tolist(), name
        assert got[num_rows] == -77, name
    assert [position.tolist(), output_index.tolist()] == [one.tolist() for one in state]
