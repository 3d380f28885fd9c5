import pytest
import torch
import xgrammar

from services.gpu_worker.kernels.apply_bitmask import apply_bitmask, apply_bitmask_reference

INT32 = torch.iinfo(torch.int32)


@pytest.mark.parametrize(("num_rows", "vocab_size"), [(1, 1), (3, 31), (4, 100), (2, 2500)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_matches_reference(num_rows: int, vocab_size: int, dtype: torch.dtype, device: torch.device) -> None:
    wide = torch.randn(num_rows, vocab_size + 9, device=device).to(dtype)
    before = wide.clone()
    logits = wide[:, :vocab_size]
    words = -(-vocab_size // 32) + 1
    bitmask = torch.randint(INT32.min, INT32.max, (5, words), dtype=torch.int32, device=device)
    mask_rows = torch.tensor([4, -1, 0, 2][:num_rows], dtype=torch.int32, device=device)
    wanted = apply_bitmask_reference(logits, bitmask, mask_rows)
    apply_bitmask(logits, bitmask, mask_rows)
    assert torch.equal(logits, wanted)
    assert torch.equal(wide[:, vocab_size:], before[:, vocab_size:])


def test_layout_is_xgrammars() -> None:
    vocab_size = 70
    bitmask = torch.randint(INT32.min, INT32.max, (1, 3), dtype=torch.int32)
    theirs = torch.zeros(1, vocab_size)
    xgrammar.apply_token_bitmask_inplace(theirs, bitmask, vocab_size=vocab_size)
    ours = apply_bitmask_reference(torch.zeros(1, vocab_size), bitmask, torch.zeros(1, dtype=torch.int32))
    assert torch.equal(ours, theirs)
