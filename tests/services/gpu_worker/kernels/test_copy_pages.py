"""Page copies against index_copy_."""

import pytest
import torch

from services.gpu_worker.kernels.copy_pages import copy_pages, copy_pages_reference


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("page_size", "head_dim"), [(1, 64), (16, 80), (3, 96), (64, 128)])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_copies_as_many_pairs_as_the_device_says(
    page_size: int, head_dim: int, count: int, dtype: torch.dtype, device: torch.device
) -> None:
    storage = torch.randn(2, 2, 3, 9, page_size, head_dim, device=device).to(dtype)
    # pairs past the count hold whatever was there: here, pages that do not exist
    pairs = torch.tensor([[0, 5], [0, 8], [7, 2], [10**6, -(10**6)]], dtype=torch.int32, device=device)
    wanted = storage.clone()
    copy_pages_reference(wanted, pairs, count)
    copy_pages(storage, pairs, torch.tensor([count], dtype=torch.int32, device=device))
    assert torch.equal(storage, wanted)


def test_no_room_for_pairs(device: torch.device) -> None:
    storage = torch.zeros(1, 2, 1, 1, 1, 8, device=device)
    pairs = torch.zeros(0, 2, dtype=torch.int32, device=device)
    copy_pages(storage, pairs, torch.zeros(1, dtype=torch.int32, device=device))
