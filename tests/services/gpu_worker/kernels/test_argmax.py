import pytest
import torch

from services.gpu_worker.kernels.argmax import ArgmaxScratch, argmax, argmax_reference
from tests.services.gpu_worker.kernels.kernel_testing import poison


@pytest.mark.parametrize(("num_rows", "vocab_size"), [(1, 1), (3, 100), (5, 257), (2, 3000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_matches_reference(num_rows: int, vocab_size: int, dtype: torch.dtype, device: torch.device) -> None:
    scratch = ArgmaxScratch.allocate(num_rows + 1, vocab_size, device, block=64)
    seats = torch.arange(num_rows, dtype=torch.int32, device=device)
    for _ in range(3):
        wide = torch.randn(num_rows, vocab_size + 5, device=device).to(dtype)  # bfloat16: many equal logits
        logits = wide[:, :vocab_size]
        poison(scratch.tops), poison(scratch.ids)
        tokens = poison(torch.empty(num_rows, dtype=torch.int32, device=device))
        assert argmax(logits, seats, scratch, tokens).tolist() == argmax_reference(logits, seats).tolist()


def test_lowest_of_equals_no_numbers_and_padding(device: torch.device) -> None:
    logits = torch.zeros(6, 300, device=device)
    logits[1, 299] = torch.nan
    logits[2, 5] = torch.inf
    logits[3] = -torch.inf
    logits[4, [77, 222]] = 1.0
    seats = torch.tensor([0, 1, 2, 3, 4, -1], dtype=torch.int32, device=device)
    tokens = poison(torch.empty(6, dtype=torch.int32, device=device))
    argmax(logits, seats, ArgmaxScratch.allocate(6, 300, device, block=64), tokens)
    assert tokens.tolist() == [0, -1, -1, -1, 77, -1] == argmax_reference(logits, seats).tolist()
