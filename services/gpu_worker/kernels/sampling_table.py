"""Sampling parameters on the device: one entry per seat, so that steps name seats and copy nothing."""

from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

GREEDY_BELOW = tl.constexpr(1e-5)
"""A temperature under this is no temperature: the most likely token is taken."""


@dataclass(frozen=True, slots=True)
class SamplingTable:
    """All [seats]. temperature, top_p, min_p: float32. top_k: int32, 0 for none. seed: int64, the 64 bits of it.
    output_index: int32, how many tokens came out before the next one; `advance` moves it on."""

    temperature: Tensor
    top_p: Tensor
    min_p: Tensor
    top_k: Tensor
    seed: Tensor
    output_index: Tensor

    @staticmethod
    def allocate(num_seats: int, device: torch.device) -> "SamplingTable":
        """Every seat greedy."""

        def filled(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((num_seats,), value, dtype=dtype, device=device)

        return SamplingTable(
            filled(0.0, torch.float32),
            filled(1.0, torch.float32),
            filled(0.0, torch.float32),
            filled(0, torch.int32),
            filled(0, torch.int64),
            filled(0, torch.int32),
        )
