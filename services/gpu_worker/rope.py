"""Rotary position embedding in the half-split layout of Llama checkpoints.

A head's vector x = [x1, x2] at position p becomes [x1 cos - x2 sin, x2 cos + x1 sin], where cos and sin are taken
of p times the inverse frequencies. Written as x * cos + roll(x) * signed_sin, with signed_sin = [-sin, sin].
"""

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


class Rope:
    """The frequencies of a model. Positions come and go with the batch, so no table is kept.

    inverse_frequencies: [head_dim / 2]; scale: of cosines and sines."""

    def __init__(self, config: PretrainedConfig, head_dim: int, device: torch.device) -> None:
        parameters = config.rope_parameters
        kind = parameters.get("rope_type", "default")
        if kind == "default":
            exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
            inverse_frequencies, scale = 1.0 / (parameters["rope_theta"] ** exponents), 1.0
        else:
            inverse_frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
        self.inverse_frequencies = inverse_frequencies.to(device)
        self.scale = scale

    def angles(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """positions [N] -> cos, signed_sin [N, 1, head_dim]."""
        angles = torch.outer(positions.float(), self.inverse_frequencies)
        cos, sin = angles.cos() * self.scale, angles.sin() * self.scale
        return torch.cat((cos, cos), -1).to(dtype).unsqueeze(1), torch.cat((-sin, sin), -1).to(dtype).unsqueeze(1)


def rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """x [N, H, D] -> [N, H, D]."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), signed_sin)


def rotate_reference(x: Tensor, positions: Tensor, inverse_frequencies: Tensor) -> Tensor:
    """The definition, in float64. x [N, H, D], positions [N], inverse_frequencies [D / 2]."""
    angles = positions.double()[:, None, None] * inverse_frequencies.double()
    first, second = x.double().chunk(2, -1)
    return torch.cat((first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()), -1)
