"""Rows of a step, from seats and from the host."""

import pytest
import torch

from services.gpu_worker.kernels.begin_step import begin_step, begin_step_reference


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize(("num_rows", "num_seats", "has_host_rows"), [(1, 1, False), (7, 9, True), (131, 40, True)])
def test_matches_reference(
    num_rows: int, num_seats: int, has_host_rows: bool, page_size: int, device: torch.device
) -> None:
    seats = torch.randint(-1, num_seats, (num_rows,), dtype=torch.int32, device=device)
    last_token = torch.randint(0, 1000, (num_seats,), dtype=torch.int32, device=device)
    position = torch.randint(0, 8 * page_size, (num_seats,), dtype=torch.int32, device=device)
    page_tables = torch.randint(0, 500, (num_seats, 8), dtype=torch.int32, device=device)
    host_rows = None
    if has_host_rows:
        host_rows = torch.randint(-1, 1000, (3, num_rows + 5), dtype=torch.int32, device=device)[:, :num_rows]
    expected = begin_step_reference(seats, last_token, position, page_tables, host_rows, page_size)
    out = [torch.full((num_rows + 1,), -77, dtype=torch.int32, device=device) for _ in range(4)]
    begin_step(seats, last_token, position, page_tables, host_rows, page_size, *(one[:num_rows] for one in out))
    for name, got, want in zip(("token_ids", "positions", "slots", "lengths"), out, expected, strict=True):
        assert got[:num_rows].tolist() == want.tolist(), name
        assert got[num_rows] == -77, name
