import pytest
import torch

from services.gpu_worker.head import NUM_EXACT, Head


@pytest.mark.parametrize(("rows", "vocab"), [(1, 1000), (7, 333), (3, NUM_EXACT - 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_best_logits_are_exact_and_the_others_near(dtype: torch.dtype, rows: int, vocab: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(vocab, 64).to(dtype)
    hidden = torch.randn(rows, 64)
    expected = hidden.double() @ weight.double().T
    with torch.inference_mode():
        logits = Head(weight)(hidden)
    assert logits.dtype is torch.float32
    best = expected.topk(min(8, vocab)).indices
    torch.testing.assert_close(logits.gather(1, best).double(), expected.gather(1, best), rtol=1e-5, atol=1e-4)
    assert (logits - expected).norm() <= 8e-3 * expected.norm()
    assert torch.equal(logits.argmax(1), expected.argmax(1))
