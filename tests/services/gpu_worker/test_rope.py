import pytest
import torch
from transformers import LlamaConfig

from services.gpu_worker.rope import Rope, rotate, rotate_reference


@pytest.mark.parametrize("head_dim", [2, 10, 64])
def test_matches_reference(head_dim: int) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(head_dim=head_dim, rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    positions = torch.tensor([0, 1, 2, 900, 5, 131071])
    x = torch.randn(6, 3, head_dim)
    cos, signed_sin = Rope(config, head_dim, torch.device("cpu")).angles(positions, torch.float32)
    inverse_frequencies = 500.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
    expected = rotate_reference(x, positions, inverse_frequencies).float()
    # float32 angles of 131,071 radians are good to 8e-3; small positions to float32's precision.
    torch.testing.assert_close(rotate(x, cos, signed_sin)[:5], expected[:5], rtol=0, atol=2e-4)
    torch.testing.assert_close(rotate(x, cos, signed_sin)[5], expected[5], rtol=0, atol=5e-2)
