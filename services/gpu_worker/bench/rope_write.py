"""Cases of `kernels/rope_write.py`: heads of an 8B and a 1B model, a prefill chunk and a decode batch."""

from collections.abc import Iterator

import torch
from torch import Tensor

from services.gpu_worker.bench.case import Case, assert_error_below, nbytes, rotating, sets_past_l2
from services.gpu_worker.kernels.rope_write import rope_table, rope_write, rope_write_reference

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
MAX_POSITIONS = 8192


def cases() -> Iterator[Case]:
    for tokens, head_dim in ((8192, 128), (8192, 64), (512, 128)):
        bytes_of_one = tokens * 48 * head_dim * 4
        sets = [_inputs(tokens, 32, 8, head_dim) for _ in range(sets_past_l2(bytes_of_one))]
        yield _case(f"{tokens} tokens, 32 + 8 + 8 heads of {head_dim}", sets)


def _inputs(tokens: int, q_heads: int, kv_heads: int, head_dim: int) -> Inputs:
    """qkv, positions, table, slots, keys, values."""
    frequencies = 1.0 / 500000 ** (torch.arange(0, head_dim, 2, device="cuda") / head_dim)
    return (
        torch.randn(tokens, q_heads + 2 * kv_heads, head_dim, dtype=torch.bfloat16, device="cuda"),
        torch.arange(tokens, dtype=torch.int32, device="cuda") % MAX_POSITIONS,
        rope_table(frequencies, 1.0, MAX_POSITIONS),
        torch.randperm(tokens, device="cuda"),
        torch.empty(kv_heads, tokens, head_dim, dtype=torch.bfloat16, device="cuda"),
        torch.empty(kv_heads, tokens, head_dim, dtype=torch.bfloat16, device="cuda"),
    )


def _case(name: str, sets: list[Inputs]) -> Case:
    qkv, positions, table, slots, keys, values = sets[0]

    def check() -> None:
        wanted_keys, wanted_values = torch.empty_like(keys), torch.empty_like(values)
        wanted = rope_write_reference(
            qkv.double(), positions, table.double(), slots, wanted_keys, wanted_values
        )  # fmt: skip
        keys.fill_(torch.nan), values.fill_(torch.nan)
        queries = rope_write(*sets[0])
        assert_error_below(5e-3, queries, wanted, "queries")
        assert_error_below(5e-3, keys, wanted_keys, "keys")
        assert_error_below(5e-3, values, wanted_values, "values")

    table_bytes = nbytes(table) * qkv.shape[0] // MAX_POSITIONS
    return Case(name, rotating(rope_write, sets), check, 2 * nbytes(qkv) + nbytes(positions, slots) + table_bytes)
