"""Log-probabilities of the sampled tokens, and of each row's n likeliest.

logprob[b, t] = x[b, t] - log sum_s exp(x[b, s]),  x = logits, or logits / temperature
The API's log-probabilities are the model's own, of the logits before temperature, penalties, biases and masks: pass
the logits as the model made them (a copy, where `adjust_logits` changes them in place), after sampling, for the tokens
are needed.
With temperatures given they are those of the distribution that is sampled from, filters aside.

Reads B * V logits, of rows that ask only. A row is cut into blocks; each program takes its n likeliest out one by one,
and the last of a row's programs the n likeliest of those.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.gpu_worker.kernels.argmax import load_logits
from services.gpu_worker.kernels.arrival import is_last
from services.gpu_worker.kernels.sampling_table import GREEDY_BELOW

BLOCK = 4096
MOST = 20  # log-probabilities of a row, by the API
PADDED = 32  # the next power of two
LN_2 = tl.constexpr(0.6931471805599453)
LOG2_E = tl.constexpr(1.4426950408889634)
NO_KEY = tl.constexpr(-9223372036854775807)


@dataclass(frozen=True, slots=True)
class Logprobs:
    """What comes out. sampled: float32 [B], the sampled token's. top_ids: int32, top_values: float32 [B, 20], the
    likeliest by descending probability, equal ones by id; as many of them as the row asks for are written."""

    sampled: Tensor
    top_ids: Tensor
    top_values: Tensor

    @staticmethod
    def allocate(num_rows: int, device: torch.device) -> "Logprobs":
        return Logprobs(
            torch.empty(num_rows, dtype=torch.float32, device=device),
            torch.empty(num_rows, MOST, dtype=torch.int32, device=device),
            torch.empty(num_rows, MOST, dtype=torch.float32, device=device),
        )


@dataclass(frozen=True, slots=True)
class LogprobsScratch:
    """tops, sums: float32 [rows, blocks], a block's largest logit and its mass relative to it; keys: int64 [rows,
    blocks, 32], its likeliest; arrived: int32 [rows], zeros between launches."""

    block: int
    tops: Tensor
    sums: Tensor
    keys: Tensor
    arrived: Tensor

    @staticmethod
    def allocate(num_rows: int, vocab_size: int, device: torch.device, block: int = BLOCK) -> "LogprobsScratch":
        num_blocks = triton.cdiv(vocab_size, block)
        return LogprobsScratch(
            block,
            torch.empty(num_rows, num_blocks, dtype=torch.float32, device=device),
            torch.empty(num_rows, num_blocks, dtype=torch.float32, device=device),
            torch.empty(num_rows, num_blocks, PADDED, dtype=torch.int64, device=device),
            torch.zeros(num_rows, dtype=torch.int32, device=device),
        )


def logprobs_reference(
    logits: Tensor, tokens: Tensor, seats: Tensor, num_tops: Tensor, temperature: Tensor | None = None
) -> list[tuple[float, list[int], list[float]] | None]:
    """The definition, in float64: the sampled token's, the likeliest ids, theirs; None where nothing is asked for."""
    answers: list[tuple[float, list[int], list[float]] | None] = []
    for row, (token, seat) in enumerate(zip(tokens.tolist(), seats.tolist(), strict=True)):
        if seat < 0 or num_tops[seat] < 0:
            answers.append(None)
            continue
        x = logits[row].double().cpu()
        if temperature is not None and temperature[seat] >= GREEDY_BELOW.value:
            x = x / float(temperature[seat])
        values = x.log_softmax(-1)
        order = torch.sort(values, descending=True, stable=True).indices[: int(num_tops[seat])]
        answers.append((float(values[token]) if token >= 0 else float("nan"), order.tolist(), values[order].tolist()))
    return answers


@triton.jit
def _keys(logits, tokens, is_token):  # type: ignore[no-untyped-def]
    """int64 that are larger for larger logits, and among equals for lower ids."""
    bits = tl.where(logits == 0, 0.0, logits).to(tl.int32, bitcast=True)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)
    return tl.where(is_token, (ordered << 32) | (0x7FFFFFFF - tokens).to(tl.int64), NO_KEY)


@triton.jit
def _logprobs_kernel(  # type: ignore[no-untyped-def]
    sampled_ptr,
    top_ids_ptr,
    top_values_ptr,
    logits_ptr,
    tokens_ptr,
    seats_ptr,
    num_tops_ptr,
    temperature_ptr,  # None: of the logits as they are
    tops_ptr,
    sums_ptr,
    keys_ptr,
    arrived_ptr,
    stride_logits,
    stride_tops,
    vocab_size,
    num_blocks,
    IS_SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
    PADDED: tl.constexpr,
):
    block = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    seat = tl.load(seats_ptr + row)
    if seat < 0:
        return
    num_tops = tl.load(num_tops_ptr + seat)
    if num_tops < 0:
        return
    scale = 1.0
    if IS_SCALED:
        temperature = tl.load(temperature_ptr + seat)
        scale = 1.0 / tl.where(temperature >= GREEDY_BELOW, temperature, 1.0)
    row_ptr = logits_ptr + row * stride_logits
    tops_ptr += row * num_blocks
    sums_ptr += row * num_blocks
    keys_ptr += row * num_blocks * PADDED

    tokens = block * BLOCK + tl.arange(0, BLOCK)
    logits = load_logits(row_ptr, tokens, vocab_size)
    top = tl.max(logits, 0)
    base = tl.where(tl.abs(top) < float("inf"), top, 0.0)
    tl.store(tops_ptr + block, top)
    tl.store(sums_ptr + block, tl.sum(tl.exp2((logits - base) * (scale * LOG2_E)), 0))
    keys = _keys(logits, tokens, tokens < vocab_size)
    for rank in range(num_tops):
        best = tl.max(keys, 0)
        tl.store(keys_ptr + block * PADDED + rank, best)
        keys = tl.where(keys == best, NO_KEY, keys)

    if is_last(arrived_ptr + row, num_blocks):
        blocks = tl.arange(0, NUM_BLOCKS)
        is_block = blocks < num_blocks
        tops = tl.load(tops_ptr + blocks, mask=is_block, other=float("-inf"), cache_modifier=".cg")
        sums = tl.load(sums_ptr + blocks, mask=is_block, other=0.0, cache_modifier=".cg")
        peak = tl.max(tops, 0)
        log_sum = tl.log2(tl.sum(sums * tl.exp2((tops - peak) * (scale * LOG2_E)), 0)) * LN_2
        token = tl.load(tokens_ptr + row)
        logit = tl.load(row_ptr + token, mask=token >= 0, other=float("nan")).to(tl.float32)
        tl.store(sampled_ptr + row, (logit - peak) * scale - log_sum)
        places = tl.arange(0, NUM_BLOCKS * PADDED)
        is_place = (places < num_blocks * PADDED) & (places % PADDED < num_tops)
        row_keys = tl.load(keys_ptr + places, mask=is_place, other=NO_KEY, cache_modifier=".cg")
        for rank in range(num_tops):
            row_best = tl.max(row_keys, 0)
            ordered = (row_best >> 32).to(tl.int32)
            likely = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
            tl.store(top_ids_ptr + row * stride_tops + rank, 0x7FFFFFFF - (row_best & 0xFFFFFFFF).to(tl.int32))
            tl.store(top_values_ptr + row * stride_tops + rank, (likely - peak) * scale - log_sum)
            row_keys = tl.where(row_keys == row_best, NO_KEY, row_keys)


def logprobs(
    logits: Tensor,
    tokens: Tensor,
    seats: Tensor,
    num_tops: Tensor,
    scratch: LogprobsScratch,
    out: Logprobs,
    temperature: Tensor | None = None,
) -> Logprobs:
    """logits: [B, V], float, rows may be apart. tokens: int32 [B], the sampled ones. seats: int32 [B], negative for
    padding. num_tops: int32 [seats], how many of the likeliest a sequence wants, at most 20 and at most V; -1 for no
    log-probabilities at all, and nothing is written for such rows. temperature: float32 [seats], see above."""
    num_rows, vocab_size = logits.shape
    num_blocks = triton.cdiv(vocab_size, scratch.block)
    assert logits.stride(1) == 1 and tokens.shape == seats.shape == (num_rows,)
    assert scratch.tops.shape[0] >= num_rows and scratch.tops.shape[1] == num_blocks
    assert out.top_ids.stride() == out.top_values.stride()
    _logprobs_kernel[(num_blocks, num_rows)](
        out.sampled,
        out.top_ids,
        out.top_values,
        logits,
        tokens,
        seats,
        num_tops,
        temperature,
        scratch.tops,
        scratch.sums,
        scratch.keys,
        scratch.arrived,
        logits.stride(0),
        out.top_ids.stride(0),
        vocab_size,
        num_blocks,
        IS_SCALED=temperature is not None,
        BLOCK=scratch.block,
        NUM_BLOCKS=triton.next_power_of_2(num_blocks),
        PADDED=PADDED,
    )
    return out
