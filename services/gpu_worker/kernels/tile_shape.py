"""Tile sizes of the attention kernels, by the padded width of a head.

Chosen on an H100 by benchmarks/gpu/tune_decode_attention.py; change them from its table."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class TileShape:
    """How a kernel is compiled and launched.

    block_tokens: tokens of a step of the inner loop. block_rows: query rows of a tile (grouped attention alone).
    num_stages: depth of the software pipeline. programs_per_sm: how many programs an SM is given, at least as many
    as fit on it at once."""

    block_tokens: int
    num_warps: int
    num_stages: int
    programs_per_sm: int
    block_rows: int = 16


DECODE_TILES = {
    64: TileShape(block_tokens=128, num_warps=4, num_stages=4, programs_per_sm=2),
    128: TileShape(block_tokens=64, num_warps=2, num_stages=4, programs_per_sm=2),
    256: TileShape(block_tokens=32, num_warps=4, num_stages=3, programs_per_sm=3),
}
GROUPED_TILES = {
    64: TileShape(block_tokens=128, num_warps=4, num_stages=3, programs_per_sm=2, block_rows=64),
    128: TileShape(block_tokens=64, num_warps=4, num_stages=3, programs_per_sm=2, block_rows=64),
    256: TileShape(block_tokens=32, num_warps=8, num_stages=2, programs_per_sm=1, block_rows=64),
}


def head_block(head_dim: int) -> int:
    """The key of the tables above for heads of this width."""
    for block in DECODE_TILES:
        if head_dim <= block:
            return block
    raise ValueError(f"head_dim {head_dim} is more than the kernels support (256)")


def num_multiprocessors(device: torch.device) -> int:
    """How many SMs the device has; a handful on a CPU, where programs run one after another."""
    if device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count
