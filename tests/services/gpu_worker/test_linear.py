import pytest
import torch
import torch.nn.functional as F

from services.gpu_worker import linear
from services.gpu_worker.linear import Linear, can_pack


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (48, 96), (97, 33), (960, 576)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_matches_the_dense_product(dtype: torch.dtype, outputs: int, inputs: int, has_bias: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(outputs, inputs).to(dtype)
    bias = torch.randn(outputs).to(dtype) if has_bias else None
    with torch.inference_mode():
        product = Linear(weight, bias)
        for rows in (1, 2, 3, 7, 8, 31, 33, 100, 513):
            x = torch.randn(rows, inputs).to(dtype)
            expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
            actual = product(x)
            assert actual.dtype is dtype
            assert actual.shape == (rows, outputs)
            bound = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
            assert (actual.double() - expected).norm() <= bound * expected.norm()
            residual = torch.randn(rows, outputs).to(dtype)
            before, added = residual.clone(), product(x, residual)
            expected += residual.double()
            assert (added.double() - expected).norm() <= bound * expected.norm()
            assert torch.equal(residual, before)


def test_without_the_packed_product_the_dense_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "can_pack", lambda weight: False)
    weight, x = torch.randn(8, 4), torch.randn(3, 4)
    torch.testing.assert_close(Linear(weight)(x), x @ weight.T)


def test_float32_is_packed_on_a_cpu() -> None:
    assert can_pack(torch.randn(8, 4))
    assert not can_pack(torch.randn(8, 4, dtype=torch.float64))
