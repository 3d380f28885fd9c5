"""Compiles kernels for an H100 on a machine without one: run as a program, for Triton must not be interpreting.

The interpreter accepts what the compiler refuses (a variable whose type changes in a branch, say), and it knows no
registers. A launch inside `compiling` compiles what the GPU would run, down to machine code, and runs nothing.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from services.gpu_worker.kernels.adjust_logits import Masks, NamedTokens, adjust_logits
from services.gpu_worker.kernels.advance import SeatState, advance
from services.gpu_worker.kernels.apply_bitmask import apply_bitmask
from services.gpu_worker.kernels.argmax import ArgmaxScratch, argmax
from services.gpu_worker.kernels.extend_attention import choose_tiling, extend_attention, plan_extend
from services.gpu_worker.kernels.logprobs import Logprobs, LogprobsScratch, logprobs
from services.gpu_worker.kernels.penalties import Penalties
from services.gpu_worker.kernels.sample import SampleScratch, sample
from services.gpu_worker.kernels.sample_filtered import sample_filtered
from services.gpu_worker.kernels.sampling_table import SamplingTable

CPU = torch.device("cpu")


class _Hopper:
    """As much of a Triton driver as compiling needs."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def compiling() -> Iterator[list[Any]]:
    """Launches inside compile only; the list collects their compiled kernels."""
    compiled: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        compiled.append(run(self, *args, grid=grid, warmup=True, **kwargs))

    triton.runtime.driver.set_active(_Hopper())
    with mock.patch.object(JITFunction, "run", compile_only):
        yield compiled


def extend(head_dim: int, dtype: torch.dtype = torch.bfloat16, **options: Any) -> None:
    product = torch.zeros(64, 48, head_dim, dtype=dtype)
    query, k, v = product[:, :32], product[:, 32:40], product[:, 40:]
    pool = torch.zeros(2, 8, 256, head_dim).to(torch.float8_e4m3fn if options else dtype)
    numbers = torch.tensor([[0], [0], [64], [64]], dtype=torch.int32)
    plan = plan_extend(np.array([64]), np.array([64]), choose_tiling(head_dim).rows(4))
    extend_attention(
        query, k, v, *pool.unbind(0), torch.zeros(1, 16, dtype=torch.int32), *numbers.unbind(0),
        tiles=torch.from_numpy(plan), num_tiles=torch.ones(1, dtype=torch.int32), out=torch.empty_like(query),
        page_size=16, scale=0.1, **options,
    )  # fmt: skip


def sampling(num_rows: int, vocab_size: int) -> None:
    logits = torch.zeros(num_rows, vocab_size)
    seats = torch.zeros(num_rows, dtype=torch.int32)
    tokens = torch.zeros(num_rows, dtype=torch.int32)
    table = SamplingTable.allocate(8, CPU)
    argmax(logits, seats, ArgmaxScratch.allocate(num_rows, vocab_size, CPU), tokens)
    scratch = SampleScratch.allocate(num_rows, vocab_size, CPU)
    sample(logits, seats, table, scratch, tokens)
    sample_filtered(logits, seats, table, scratch, tokens)
    bitmask = torch.zeros(2, -(-vocab_size // 32), dtype=torch.int32)
    apply_bitmask(logits, bitmask, seats)
    penalties = Penalties.allocate(8, 2, vocab_size, CPU)
    named = NamedTokens.allocate(8, 300, 8, CPU)
    adjust_logits(logits, seats, table.output_index, named)
    adjust_logits(logits, seats, table.output_index, named, penalties, Masks(bitmask, seats))
    log_scratch, out = LogprobsScratch.allocate(num_rows, vocab_size, CPU), Logprobs.allocate(num_rows, CPU)
    logprobs(logits, tokens, seats, table.top_k, log_scratch, out)
    logprobs(logits, tokens, seats, table.top_k, log_scratch, out, table.temperature)
    state = SeatState(
        *(torch.zeros(8, dtype=torch.int32) for _ in range(3)), torch.zeros(4, 64, dtype=torch.int32), seats
    )
    advance(tokens, seats, state)
    advance(tokens, seats, state, penalties)


def launches() -> Iterator[tuple[str, Callable[[], None]]]:
    for head_dim in (64, 80, 128, 256):
        yield f"extend attention, head dim {head_dim}", lambda head_dim=head_dim: extend(head_dim)  # type: ignore[misc]
    scales = {"key_scales": torch.ones(8), "value_scales": torch.ones(8)}
    yield "extend attention, 8-bit pool, window, softcap", lambda: extend(128, **scales, window=64, softcap=30.0)
    yield "sampling, 1 row of 49,152", lambda: sampling(1, 49_152)
    yield "sampling, 48 rows of 128,256", lambda: sampling(48, 128_256)


def main() -> None:
    """A line for each launch; ends with an error where one does not compile, or wants more than a program may have."""
    for name, launch in launches():
        with compiling() as compiled:
            launch()
        assert compiled, name
        shared = max(kernel.metadata.shared for kernel in compiled)
        assert shared <= 232_448, f"{name}: {shared} bytes of shared memory"
        assert all("cubin" in kernel.asm for kernel in compiled), name
        print(f"{name}: {len(compiled)} kernels, at most {shared} bytes of shared memory")


if __name__ == "__main__":
    main()
