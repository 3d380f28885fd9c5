"""Sampling without a sort, each row with its own temperature, filters and seed: first of three launches.

With mass[t] = exp((logit[t] - peak) / temperature), peak the row's largest logit, total the sum of mass:
    greedy rows (temperature under 1e-5):  the likeliest token, the lowest id among equals
    rows without filters:  the first t, in the vocabulary's order, with mass[0] + .. + mass[t] > u * total
    rows with filters:     peak, total and how far below the peak a token can lie and still be kept
u is Philox's number for the row's seed and output index, `tl.rand(seed, index)`: a row's token depends on its logits,
its parameters and u, on nothing else in the batch. Where logits are NaN, or the largest is infinite, the token is -1.

Rows with filters are finished by `sample_filtered`; without any the launch is all there is.
Reads B * V logits, and one block of a row again. A row is cut into blocks of BLOCK tokens whatever the batch, each a
program, so that the sums are rounded the same in every batch; the last of a row's programs finishes it.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.gpu_worker.kernels.argmax import NO_TOKEN, likeliest, load_logits
from services.gpu_worker.kernels.arrival import is_last
from services.gpu_worker.kernels.launcher import launcher
from services.gpu_worker.kernels.sampling_table import GREEDY_BELOW, SamplingTable

BLOCK = 2048
LANES = 16  # parts of a block whose maxima are kept, for a bound of the k-th largest logit
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
FARTHEST = tl.constexpr(40.0)
"""In nats below the peak: 2**18 tokens beyond it have less than 2e-12 of the mass, and u is a multiple of 2**-31."""
SLACK = tl.constexpr(1e-3)
"""Bounds are widened by this, so that rounding cannot put a token wrongly beyond one."""
NO_REACH = tl.constexpr(-1.0)


@dataclass(frozen=True, slots=True)
class SampleScratch:
    """What launches hand to each other. tops, sums, ids: [rows, blocks], a block's largest logit, its mass relative to
    that logit's, its token. lane_tops: [rows, blocks * LANES]. peaks, reaches: float32 [rows], a row's largest logit
    and how many nats below it a token may lie to be kept; reach -1 where nothing is left to do. totals: float64 [rows].

    histogram: int64 [rows, bins]; candidates: int64 [rows, capacity]; num_candidates: int32 [rows]; cuts: int32
    [rows, 4] and cut_masses: float64 [rows, 3] belong to `sample_filtered`. arrived: int32 [3, rows]. The histogram,
    num_candidates and arrived are zeros between launches."""

    block: int
    tops: Tensor
    sums: Tensor
    ids: Tensor
    lane_tops: Tensor
    peaks: Tensor
    totals: Tensor
    reaches: Tensor
    histogram: Tensor
    candidates: Tensor
    num_candidates: Tensor
    cuts: Tensor
    cut_masses: Tensor
    arrived: Tensor

    @staticmethod
    def allocate(
        num_rows: int,
        vocab_size: int,
        device: torch.device,
        *,
        block: int = BLOCK,
        bins: int | None = None,
        capacity: int = 2048,
    ) -> "SampleScratch":
        """bins: by the vocabulary, so that a bin has some hundreds of tokens at most even where all are alike."""
        if bins is None:
            bins = 2048 if vocab_size <= 2**16 else 4096
        num_blocks = triton.cdiv(vocab_size, block)

        def made(dtype: torch.dtype, *dims: int) -> Tensor:
            return torch.zeros(dims, dtype=dtype, device=device)

        return SampleScratch(
            block,
            made(torch.float32, num_rows, num_blocks),
            made(torch.float32, num_rows, num_blocks),
            made(torch.int32, num_rows, num_blocks),
            made(torch.float32, num_rows, num_blocks * LANES),
            made(torch.float32, num_rows),
            made(torch.float64, num_rows),
            made(torch.float32, num_rows),
            made(torch.int64, num_rows, bins),
            made(torch.int64, num_rows, capacity),
            made(torch.int32, num_rows),
            made(torch.int32, num_rows, 4),
            made(torch.float64, num_rows, 3),
            made(torch.int32, 3, num_rows),
        )


def sample_reference(logits: Tensor, seats: Tensor, table: SamplingTable) -> Tensor:
    """The definition, filters included, by a full sort in float64. logits: [B, V] -> int32 [B]."""
    from services.gpu_worker.philox import uniform

    tokens = torch.full((len(seats),), -1, dtype=torch.int32)
    for row, seat in enumerate(seats.tolist()):
        x = logits[row].double().cpu()
        if seat < 0 or not x.max().isfinite() or x.isnan().any():
            continue
        temperature = float(table.temperature[seat])
        if temperature < GREEDY_BELOW.value:
            tokens[row] = int((x == x.max()).int().argmax())
            continue
        seed = table.seed[seat : seat + 1].cpu().numpy().astype("uint64")
        index = table.output_index[seat : seat + 1].cpu().numpy().astype("uint64")
        u = float(uniform(seed, index)[0])
        mass = ((x - x.max()) / temperature).exp()
        top_p, top_k, min_p = float(table.top_p[seat]), int(table.top_k[seat]), float(table.min_p[seat])
        if top_p >= 1 and top_k <= 0 and min_p <= 0:
            order, kept = torch.arange(len(x)), mass
        else:
            order = torch.sort(x, descending=True, stable=True).indices
            kept = mass[order]
            before = kept.cumsum(0) - kept
            is_kept = (before < top_p * mass.sum()) | torch.tensor(top_p >= 1)
            is_kept &= kept >= min_p
            if top_k > 0:
                is_kept &= torch.arange(len(x)) < top_k
            is_kept[0] = True
            kept = kept * is_kept
        sums = kept.cumsum(0)
        place = int((sums <= u * sums[-1]).sum())
        tokens[row] = order[min(place, int((sums < sums[-1]).sum()))]
    return tokens


@triton.jit
def look_up(sums, target):  # type: ignore[no-untyped-def]
    """The first place where non-decreasing sums pass the target; the last that adds to them, if rounding put the
    target beyond."""
    place = tl.sum((sums <= target).to(tl.int32), 0)
    return tl.minimum(place, tl.sum((sums < tl.max(sums, 0)).to(tl.int32), 0))


@triton.jit
def at(values, indices, index):  # type: ignore[no-untyped-def]
    """values[index], 0 where there is no such index."""
    return tl.sum(tl.where(indices == index, values, 0), 0)


@triton.jit
def uniform(seed_ptr, output_index_ptr, seat):  # type: ignore[no-untyped-def]
    return tl.rand(tl.load(seed_ptr + seat), tl.load(output_index_ptr + seat)).to(tl.float64)


@triton.jit
def _draw(  # type: ignore[no-untyped-def]
    row_ptr, vocab_size, peak, per_nat, block_masses, u, BLOCK: tl.constexpr, NUM_BLOCKS: tl.constexpr
):
    """A token of the whole distribution. block_masses: float64 [NUM_BLOCKS]; per_nat: log2(e) / temperature."""
    blocks = tl.arange(0, NUM_BLOCKS)
    ends = tl.cumsum(block_masses, 0)
    target = u * at(ends, blocks, NUM_BLOCKS - 1)
    block = look_up(ends, target)
    target -= at(ends, blocks, block - 1)
    tokens = block * BLOCK + tl.arange(0, BLOCK)
    logits = load_logits(row_ptr, tokens, vocab_size)
    masses = tl.exp2((logits - peak) * per_nat).to(tl.float64)
    return block * BLOCK + look_up(tl.cumsum(masses, 0), target)


@triton.jit
def _reach(  # type: ignore[no-untyped-def]
    lane_tops_ptr, num_lanes, vocab_size, peak, per_nat, total, top_k, top_p, min_p, NUM_LANES: tl.constexpr
):
    """In nats: no token farther below the peak than this is kept by all filters."""
    reach = tl.full([], FARTHEST, tl.float32)
    if min_p > 0:
        reach = tl.minimum(reach, SLACK - tl.log2(min_p) * LN_2)
    if top_p < 1:  # all tokens under this share together have less than 1 - top_p
        share = (1 - top_p) * total.to(tl.float32) / vocab_size
        reach = tl.minimum(reach, SLACK - tl.log2(share) * LN_2)
    if top_k > 0:  # where k lanes' maxima lie, so do k tokens
        lanes = tl.arange(0, NUM_LANES)
        tops = tl.load(lane_tops_ptr + lanes, mask=lanes < num_lanes, other=float("-inf"), cache_modifier=".cg")
        below = (peak - tops) * per_nat * LN_2
        near = 0.0
        far = tl.full([], FARTHEST, tl.float32)
        for _ in range(12):
            middle = (near + far) * 0.5
            if tl.sum((below <= middle).to(tl.int32), 0) >= top_k:
                far = middle
            else:
                near = middle
        reach = tl.minimum(reach, far + SLACK)
    return reach


@triton.jit
def _sample_kernel(  # type: ignore[no-untyped-def]
    tokens_ptr,
    logits_ptr,
    seats_ptr,
    temperature_ptr,
    top_p_ptr,
    min_p_ptr,
    top_k_ptr,
    seed_ptr,
    output_index_ptr,
    tops_ptr,
    sums_ptr,
    ids_ptr,
    lane_tops_ptr,
    peaks_ptr,
    totals_ptr,
    reaches_ptr,
    arrived_ptr,
    stride_logits,
    vocab_size,
    num_blocks,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
):
    block = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    seat = tl.load(seats_ptr + row)
    if seat < 0:
        tl.store(tokens_ptr + row, -1)
        tl.store(reaches_ptr + row, NO_REACH)
        return
    temperature = tl.load(temperature_ptr + seat)
    top_k = tl.load(top_k_ptr + seat)
    is_random = temperature >= GREEDY_BELOW
    per_nat = LOG2_E / tl.where(is_random, temperature, 1.0)
    row_ptr = logits_ptr + row * stride_logits
    tops_ptr += row * num_blocks
    sums_ptr += row * num_blocks
    ids_ptr += row * num_blocks
    lane_tops_ptr += row * num_blocks * LANES

    tokens = block * BLOCK + tl.arange(0, BLOCK)
    logits = load_logits(row_ptr, tokens, vocab_size)
    top = tl.max(logits, 0)
    tl.store(tops_ptr + block, top)
    tl.store(ids_ptr + block, tl.min(tl.where(logits == top, tokens, NO_TOKEN), 0))
    if is_random:
        base = tl.where(tl.abs(top) < float("inf"), top, 0.0)
        tl.store(sums_ptr + block, tl.sum(tl.exp2((logits - base) * per_nat), 0))
        if top_k > 0:
            lane_tops = tl.max(tl.reshape(logits, [BLOCK // LANES, LANES]), 0)
            tl.store(lane_tops_ptr + block * LANES + tl.arange(0, LANES), lane_tops)

    if is_last(arrived_ptr + row, num_blocks):
        peak, token = likeliest(tops_ptr, ids_ptr, num_blocks, NUM_BLOCKS)
        reach = tl.full([], NO_REACH, tl.float32)
        if is_random & (token >= 0):
            blocks = tl.arange(0, NUM_BLOCKS)
            is_block = blocks < num_blocks
            tops = tl.load(tops_ptr + blocks, mask=is_block, other=float("-inf"), cache_modifier=".cg")
            sums = tl.load(sums_ptr + blocks, mask=is_block, other=0.0, cache_modifier=".cg")
            # A block of -inf alone has sums of 2^-inf, and is 0 times that here.
            masses = sums.to(tl.float64) * tl.exp2((tops - peak) * per_nat).to(tl.float64)
            top_p = tl.load(top_p_ptr + seat)
            min_p = tl.load(min_p_ptr + seat)
            if (top_k > 0) | (top_p < 1) | (min_p > 0):
                total = tl.sum(masses, 0)
                reach = _reach(
                    lane_tops_ptr,
                    num_blocks * LANES,
                    vocab_size,
                    peak,
                    per_nat,
                    total,
                    top_k,
                    top_p,
                    min_p,
                    NUM_BLOCKS * LANES,
                )
                tl.store(peaks_ptr + row, peak)
                tl.store(totals_ptr + row, total)
            else:
                u = uniform(seed_ptr, output_index_ptr, seat)
                token = _draw(row_ptr, vocab_size, peak, per_nat, masses, u, BLOCK, NUM_BLOCKS)
        tl.store(reaches_ptr + row, reach)
        tl.store(tokens_ptr + row, token)


def sample(
    logits: Tensor,
    seats: Tensor,
    table: SamplingTable,
    scratch: SampleScratch,
    tokens: Tensor,
    *,
    compile_only: bool = False,
) -> Tensor:
    """Fills tokens int32 [B], except for rows with filters, which `sample_filtered` finishes.

    logits: [B, V], float, as penalties, biases and masks left them; rows may be apart. seats: int32 [B], which entry
    of the table is a row's; rows of padding (below 0) get -1."""
    num_rows, vocab_size = logits.shape
    num_blocks = triton.cdiv(vocab_size, scratch.block)
    assert logits.stride(1) == 1 and seats.shape == tokens.shape == (num_rows,)
    assert scratch.tops.shape[0] >= num_rows and scratch.tops.shape[1] == num_blocks
    launcher(_sample_kernel, (num_blocks, num_rows), compile_only=compile_only)(
        tokens,
        logits,
        seats,
        table.temperature,
        table.top_p,
        table.min_p,
        table.top_k,
        table.seed,
        table.output_index,
        scratch.tops,
        scratch.sums,
        scratch.ids,
        scratch.lane_tops,
        scratch.peaks,
        scratch.totals,
        scratch.reaches,
        scratch.arrived[0],
        logits.stride(0),
        vocab_size,
        num_blocks,
        BLOCK=scratch.block,
        LANES=LANES,
        NUM_BLOCKS=triton.next_power_of_2(num_blocks),
    )
    return tokens
