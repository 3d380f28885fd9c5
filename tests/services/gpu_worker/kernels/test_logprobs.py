import math

import pytest
import torch

from services.gpu_worker.kernels.logprobs import MOST, Logprobs, LogprobsScratch, logprobs, logprobs_reference
from tests.services.gpu_worker.kernels.kernel_testing import poison


@pytest.mark.parametrize("vocab_size", [20, 100, 700])
@pytest.mark.parametrize("is_scaled", [False, True])
@pytest.mark.parametrize("has_ties", [False, True])
def test_matches_reference(vocab_size: int, is_scaled: bool, has_ties: bool, device: torch.device) -> None:
    num_tops = torch.tensor([3, -1, MOST, 0, 1], dtype=torch.int32, device=device)
    temperature = torch.tensor([0.0, 1.0, 2.5, 0.5, 0.3], device=device)
    seats = torch.tensor([2, -1, 4, 0, 3, 1], dtype=torch.int32, device=device)
    logits = torch.randn(6, vocab_size, device=device) * 4
    if has_ties:
        logits = logits.round()
    logits[3, 7] = -torch.inf
    tokens = torch.randint(0, vocab_size, (6,), dtype=torch.int32, device=device)
    tokens[2] = -1
    scratch = LogprobsScratch.allocate(6, vocab_size, device, block=128)
    for _ in range(2):
        out = Logprobs.allocate(6, device)
        poison(out.sampled), poison(out.top_ids), poison(out.top_values), poison(scratch.keys)
        scaled = temperature if is_scaled else None
        logprobs(logits, tokens, seats, num_tops, scratch, out, scaled)
        for row, wanted in enumerate(logprobs_reference(logits, tokens, seats, num_tops, scaled)):
            if wanted is None:
                assert out.sampled[row].isnan() and out.top_values[row].isnan().all()
                continue
            sampled, ids, values = wanted
            assert float(out.sampled[row]) == pytest.approx(sampled, abs=1e-5, nan_ok=True)
            assert math.isnan(sampled) == (row == 2)
            assert out.top_ids[row, : len(ids)].tolist() == ids
            assert out.top_values[row, : len(ids)].tolist() == pytest.approx(values, abs=1e-5)
            assert out.top_values[row, len(ids) :].isnan().all()
    assert not scratch.arrived.any()
