"""The output head: normed hidden states to float32 logits.

A CPU's product of bfloat16 rounds its result to bfloat16, which has steps of 1/8 between 16 and 32, where the best
logits are: near ties would fall any way, and a prompt's answer depend on how much of it was cached. So the best
candidates are computed again in float32. A whole product in float32 would read twice the bytes, a fifth of what a
one-token step of SmolLM2-135M reads.
"""

import torch
from torch import Tensor

from services.gpu_worker.linear import Linear

NUM_EXACT = 32


def keeps_dense(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the head also needs its weight as it was, beside the layout that the product uses."""
    return dtype is torch.bfloat16 and device.type == "cpu"


class Head:
    """weight: [vocab_size, hidden_size], kept as it is where `keeps_dense`, so it must be in memory of its own."""

    def __init__(self, weight: Tensor) -> None:
        self._product = Linear(weight)
        self._dense = weight if keeps_dense(weight.dtype, weight.device) else None
        self._dtype = weight.dtype

    def __call__(self, hidden: Tensor) -> Tensor:
        """float32 hidden [N, hidden_size] -> float32 logits [N, vocab_size]."""
        logits = self._product(hidden.to(self._dtype)).float()
        if self._dense is not None:
            best = logits.topk(min(NUM_EXACT, logits.shape[1]), sorted=False).indices
            exact = torch.bmm(self._dense[best].float(), hidden.unsqueeze(2)).squeeze(2)
            logits.scatter_(1, best, exact)
        return logits
