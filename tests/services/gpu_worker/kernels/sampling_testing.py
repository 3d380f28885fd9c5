"""Sampling on the device beside the CPU's sampler: the same rows for both."""

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from services.gpu_worker.kernels.sample import SampleScratch, sample
from services.gpu_worker.kernels.sample_filtered import sample_filtered
from services.gpu_worker.kernels.sampling_table import SamplingTable
from services.gpu_worker.sampler import Sampler
from services.gpu_worker.sampling_state import SamplingState
from shared.messages import Sampling
from tests.services.gpu_worker.kernels.kernel_testing import poison


def a_table(
    samplings: Sequence[Sampling], device: torch.device, output_indices: Sequence[int] | None = None
) -> tuple[SamplingTable, Tensor]:
    """A table with the rows' parameters at seats in no order, and the seats; entries of other seats are poison."""
    num_rows = len(samplings)
    table = SamplingTable.allocate(num_rows + 3, device)
    for name in SamplingTable.__dataclass_fields__:
        poison(getattr(table, name))
    seats = torch.randperm(num_rows + 3)[:num_rows]
    columns = {
        "temperature": [one.temperature for one in samplings],
        "top_p": [one.top_p for one in samplings],
        "min_p": [one.min_p for one in samplings],
        "top_k": [one.top_k for one in samplings],
        "seed": [one.seed if one.seed < 2**63 else one.seed - 2**64 for one in samplings],
        "output_index": list(output_indices or [0] * num_rows),
    }
    for name, values in columns.items():
        column = getattr(table, name)
        column[seats.to(device)] = torch.tensor(values, dtype=column.dtype, device=device)
    return table, seats.int().to(device)


def sample_all(logits: Tensor, seats: Tensor, table: SamplingTable, scratch: SampleScratch | None = None) -> list[int]:
    """All three launches, on outputs full of poison."""
    scratch = scratch or SampleScratch.allocate(*logits.shape, logits.device, block=512, bins=1024, capacity=64)
    for name in ("tops", "sums", "ids", "lane_tops", "peaks", "totals", "reaches", "candidates", "cuts", "cut_masses"):
        poison(getattr(scratch, name))
    tokens = poison(torch.empty(logits.shape[0], dtype=torch.int32, device=logits.device))
    sample(logits, seats, table, scratch, tokens)
    sample_filtered(logits, seats, table, scratch, tokens)
    for name in ("histogram", "num_candidates", "arrived"):
        assert not getattr(scratch, name).any(), f"{name} is not cleared"
    return tokens.tolist()


def sample_on_cpu(
    logits: Tensor, samplings: Sequence[Sampling], output_indices: Sequence[int] | None = None
) -> list[int]:
    """-1 where the logits are no numbers."""
    vocab_size = logits.shape[1]
    rows = [SamplingState(one, [], array("i", [0]), array("i"), vocab_size) for one in samplings]
    for row, index in zip(rows, output_indices or [0] * len(rows), strict=True):
        row.num_outputs = index
    tokens = Sampler(vocab_size).sample(logits.cpu().clone(), rows)
    return [-1 if token is None else token for token in tokens]
