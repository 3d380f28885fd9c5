"""Sampling without a sort: the second and third launch, for rows with top-k, top-p or min-p.

Tokens in order of descending logit, equal ones by ascending id; with the masses of `sample`, the first n are kept:
    n = min(top_k, the fewest that have top_p of the row's whole mass, those with mass >= min_p), at least 1
and the token is the first whose cumulative mass passes u times the mass of the n.

Second launch: tokens within reach of the peak are counted in bins of equal width in nats, counts and masses in one
64-bit number, so that their sums are exact and do not depend on the order of programs. The last of a row's programs
finds the bin where the kept tokens end, and the bins where the draw can fall.
Third launch: the tokens of those bins, usually a few dozen, are collected; the last program compares each with each, or
sorts them if they are many, and finishes.
Where more than `capacity` tokens share these bins (masses of equal logits), it searches the row for the two logits by
bisection instead: slow, but it does not depend on luck.

Reads B * V logits in each launch.
"""

import triton
import triton.language as tl
from torch import Tensor

from services.gpu_worker.kernels.argmax import load_logits
from services.gpu_worker.kernels.arrival import is_last
from services.gpu_worker.kernels.launcher import launcher
from services.gpu_worker.kernels.sample import LOG2_E, SampleScratch, at, look_up, uniform
from services.gpu_worker.kernels.sampling_table import SamplingTable

# A bin is one number: counts above bit 43, below it masses relative to the bin's edge, in units of 2**-23.
MASS_BITS = tl.constexpr(43)
ONE_TOKEN = tl.constexpr(2**43)
WHOLE_MASS = tl.constexpr(2**23)
MAX_VOCAB = 2**19  # so that neither part of a bin can overflow
FEW = 128  # candidates that are compared each with each; more are sorted
ALL = tl.constexpr(2147483647)
NO_CANDIDATE = tl.constexpr(9223372036854775807)


@triton.jit
def _below(logits, peak, per_temperature):  # type: ignore[no-untyped-def]
    """Nats below the peak."""
    return (peak - logits) * per_temperature


@triton.jit
def _masses(below):  # type: ignore[no-untyped-def]
    return tl.exp2(below * -LOG2_E)


@triton.jit
def _bins(below, reach, BINS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Non-decreasing in `below`: rounding never puts two tokens into bins of the wrong order."""
    return tl.minimum((below * (BINS / reach)).to(tl.int32), BINS - 1)


@triton.jit
def _ordered(logits):  # type: ignore[no-untyped-def]
    """int32 that compare as the logits do."""
    bits = tl.where(logits == 0, 0.0, logits).to(tl.int32, bitcast=True)  # -0 and 0 are equal
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _from_ordered(ordered):  # type: ignore[no-untyped-def]
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _limits(top_k_ptr, top_p_ptr, totals_ptr, row, seat):  # type: ignore[no-untyped-def]
    """How many tokens, and how much mass, is enough."""
    top_k = tl.load(top_k_ptr + seat)
    top_p = tl.load(top_p_ptr + seat).to(tl.float64)
    enough_mass = tl.where(top_p < 1, top_p * tl.load(totals_ptr + row), float("inf"))
    return tl.where(top_k > 0, top_k, ALL), enough_mass


@triton.jit
def _find_bins_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,
    seats_ptr,
    temperature_ptr,
    top_p_ptr,
    min_p_ptr,
    top_k_ptr,
    seed_ptr,
    output_index_ptr,
    peaks_ptr,
    totals_ptr,
    reaches_ptr,
    histogram_ptr,
    cuts_ptr,
    cut_masses_ptr,
    arrived_ptr,
    stride_logits,
    vocab_size,
    num_blocks,
    BLOCK: tl.constexpr,
    BINS: tl.constexpr,
):
    block = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    reach = tl.load(reaches_ptr + row)
    if reach < 0:
        return
    seat = tl.load(seats_ptr + row)
    per_temperature = 1 / tl.load(temperature_ptr + seat)
    min_p = tl.load(min_p_ptr + seat)
    histogram_ptr += row * BINS

    tokens = block * BLOCK + tl.arange(0, BLOCK)
    logits = load_logits(logits_ptr + row * stride_logits, tokens, vocab_size)
    below = _below(logits, tl.load(peaks_ptr + row), per_temperature)
    is_near = (below <= reach) & (_masses(below) >= min_p)
    bins = _bins(tl.where(is_near, below, 0.0), reach, BINS)
    width = reach / BINS
    relative = _masses(tl.where(is_near, below, 0.0) - bins * width)
    one_each = (relative * WHOLE_MASS).to(tl.int64) + ONE_TOKEN
    tl.atomic_add(histogram_ptr + bins, one_each, mask=is_near, sem="relaxed")

    if is_last(arrived_ptr + row, num_blocks):
        bin_ = tl.arange(0, BINS)
        packed = tl.load(histogram_ptr + bin_, cache_modifier=".cg")
        tl.debug_barrier()  # all have read before any of it is cleared
        tl.store(histogram_ptr + bin_, tl.zeros([BINS], tl.int64))
        counts = (packed >> MASS_BITS).to(tl.int32)
        fractions = (packed & (ONE_TOKEN - 1)).to(tl.float64) / WHOLE_MASS
        count_ends = tl.cumsum(counts, 0)
        mass_ends = tl.cumsum(fractions * _masses(bin_ * width).to(tl.float64), 0)
        enough, enough_mass = _limits(top_k_ptr, top_p_ptr, totals_ptr, row, seat)
        is_before = (count_ends < enough) & (mass_ends < enough_mass)
        last_used = tl.max(tl.where(counts > 0, bin_, 0), 0)
        cut = tl.minimum(tl.sum(is_before.to(tl.int32), 0), last_used)
        # The kept mass is between these two, and so the draw falls into one of the bins first .. last.
        u = uniform(seed_ptr, output_index_ptr, seat)
        least = at(mass_ends, bin_, cut - 1)
        first = tl.minimum(tl.sum((mass_ends <= u * least).to(tl.int32), 0), cut)
        last = tl.minimum(tl.sum((mass_ends <= u * at(mass_ends, bin_, cut)).to(tl.int32), 0), cut)
        tl.store(cuts_ptr + row * 4, cut)
        tl.store(cuts_ptr + row * 4 + 1, first)
        tl.store(cuts_ptr + row * 4 + 2, last)
        tl.store(cuts_ptr + row * 4 + 3, at(count_ends, bin_, cut - 1))
        tl.store(cut_masses_ptr + row * 3, least)
        tl.store(cut_masses_ptr + row * 3 + 1, at(mass_ends, bin_, first - 1))
        tl.store(cut_masses_ptr + row * 3 + 2, u)


@triton.jit
def _finish_kernel(  # type: ignore[no-untyped-def]
    tokens_ptr,
    logits_ptr,
    seats_ptr,
    temperature_ptr,
    top_p_ptr,
    min_p_ptr,
    top_k_ptr,
    peaks_ptr,
    totals_ptr,
    reaches_ptr,
    candidates_ptr,
    num_candidates_ptr,
    cuts_ptr,
    cut_masses_ptr,
    arrived_ptr,
    stride_logits,
    vocab_size,
    num_blocks,
    BLOCK: tl.constexpr,
    SEARCH_BLOCK: tl.constexpr,
    BINS: tl.constexpr,
    CAPACITY: tl.constexpr,
    FEW: tl.constexpr,
):
    block = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    reach = tl.load(reaches_ptr + row)
    if reach < 0:
        return
    seat = tl.load(seats_ptr + row)
    per_temperature = 1 / tl.load(temperature_ptr + seat)
    min_p = tl.load(min_p_ptr + seat)
    peak = tl.load(peaks_ptr + row)
    row_ptr = logits_ptr + row * stride_logits
    candidates_ptr += row * CAPACITY
    cut = tl.load(cuts_ptr + row * 4)
    first = tl.load(cuts_ptr + row * 4 + 1)
    last = tl.load(cuts_ptr + row * 4 + 2)

    tokens = block * BLOCK + tl.arange(0, BLOCK)
    logits = load_logits(row_ptr, tokens, vocab_size)
    below = _below(logits, peak, per_temperature)
    is_near = (below <= reach) & (_masses(below) >= min_p)
    bins = _bins(tl.where(is_near, below, 0.0), reach, BINS)
    is_candidate = is_near & ((bins == cut) | ((bins >= first) & (bins <= last)))
    num_found = tl.sum(is_candidate.to(tl.int32), 0)
    if num_found > 0:
        place = tl.atomic_add(num_candidates_ptr + row, num_found, sem="relaxed")
        places = place + tl.cumsum(is_candidate.to(tl.int32), 0) - 1
        # Sorted ascending: the largest logit first, then the lowest id.
        key = ((~_ordered(logits)).to(tl.int64) << 32) | tokens.to(tl.int64)
        tl.store(candidates_ptr + places, key, mask=is_candidate & (places < CAPACITY))

    if is_last(arrived_ptr + row, num_blocks):
        count = tl.load(num_candidates_ptr + row, cache_modifier=".cg")
        tl.debug_barrier()  # all threads have read before one clears
        tl.store(num_candidates_ptr + row, 0)
        enough, enough_mass = _limits(top_k_ptr, top_p_ptr, totals_ptr, row, seat)
        num_before = tl.load(cuts_ptr + row * 4 + 3)
        mass_before = tl.load(cut_masses_ptr + row * 3)
        mass_before_first = tl.load(cut_masses_ptr + row * 3 + 1)
        u = tl.load(cut_masses_ptr + row * 3 + 2)
        if count <= FEW:
            token = _compare_and_draw(
                candidates_ptr,
                count,
                peak,
                per_temperature,
                reach,
                cut,
                last,
                num_before,
                mass_before,
                mass_before_first,
                enough,
                enough_mass,
                u,
                BINS,
                FEW,
            )
        elif count <= CAPACITY:
            token = _sort_and_draw(
                candidates_ptr,
                count,
                peak,
                per_temperature,
                reach,
                cut,
                last,
                num_before,
                mass_before,
                mass_before_first,
                enough,
                enough_mass,
                u,
                BINS,
                CAPACITY,
            )
        else:
            token = _search_and_draw(
                row_ptr,
                vocab_size,
                peak,
                per_temperature,
                reach,
                min_p,
                cut,
                first,
                enough,
                enough_mass,
                u,
                BINS,
                SEARCH_BLOCK,
            )
        tl.store(tokens_ptr + row, token)


@triton.jit
def _compare_and_draw(  # type: ignore[no-untyped-def]
    candidates_ptr,
    count,
    peak,
    per_temperature,
    reach,
    cut,
    last,
    num_before,  # tokens in bins before the cut's, and their mass
    mass_before,
    mass_before_first,  # of bins before the first where the draw can fall
    enough,
    enough_mass,
    u,
    BINS: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Sums over the candidates that come before each, itself included, without putting them in order."""
    places = tl.arange(0, SIZE)
    is_candidate = places < count
    keys = tl.load(candidates_ptr + places, mask=is_candidate, other=NO_CANDIDATE, cache_modifier=".cg")
    below = tl.where(is_candidate, _below(_from_ordered(~(keys >> 32).to(tl.int32)), peak, per_temperature), 0.0)
    bins = _bins(below, reach, BINS)
    masses = tl.where(is_candidate, _masses(below), 0.0).to(tl.float64)
    is_in_cut = is_candidate & (bins == cut)
    cut_masses = tl.where(is_in_cut, masses, 0.0)
    comes_before = keys[None, :] <= keys[:, None]
    reached = num_before + tl.sum((comes_before & is_in_cut[None, :]).to(tl.int32), 1)
    reached_mass = mass_before + tl.sum(tl.where(comes_before, cut_masses[None, :], 0.0), 1)
    is_end = is_in_cut & ((reached >= enough) | (reached_mass >= enough_mass))
    end = tl.min(tl.where(is_end, keys, NO_CANDIDATE), 0)
    kept_mass = mass_before + tl.sum(tl.where(keys <= end, cut_masses, 0.0), 0)
    can_be_drawn = is_candidate & (bins <= last) & (keys <= end)
    drawn_masses = tl.where(can_be_drawn, masses, 0.0)
    sums = mass_before_first + tl.sum(tl.where(comes_before, drawn_masses[None, :], 0.0), 1)
    passing = tl.min(tl.where(can_be_drawn & (sums > u * kept_mass), keys, NO_CANDIDATE), 0)
    very_last = tl.max(tl.where(can_be_drawn, keys, -NO_CANDIDATE), 0)
    return (tl.minimum(passing, very_last) & 0xFFFFFFFF).to(tl.int32)


@triton.jit
def _sort_and_draw(  # type: ignore[no-untyped-def]
    candidates_ptr,
    count,
    peak,
    per_temperature,
    reach,
    cut,
    last,
    num_before,
    mass_before,
    mass_before_first,
    enough,
    enough_mass,
    u,
    BINS: tl.constexpr,
    SIZE: tl.constexpr,
):
    """The same for more."""
    places = tl.arange(0, SIZE)
    is_candidate = places < count
    keys = tl.load(candidates_ptr + places, mask=is_candidate, other=NO_CANDIDATE, cache_modifier=".cg")
    keys = tl.sort(keys)
    logits = _from_ordered(~(keys >> 32).to(tl.int32))
    below = tl.where(is_candidate, _below(logits, peak, per_temperature), 0.0)
    bins = _bins(below, reach, BINS)
    masses = tl.where(is_candidate, _masses(below), 0.0).to(tl.float64)
    is_in_cut = is_candidate & (bins == cut)
    cut_masses = tl.where(is_in_cut, masses, 0.0)
    reached = num_before + tl.cumsum(is_in_cut.to(tl.int32), 0)
    reached_mass = mass_before + tl.cumsum(cut_masses, 0)
    is_end = is_in_cut & ((reached >= enough) | (reached_mass >= enough_mass))
    end = tl.min(tl.where(is_end, places, SIZE), 0)
    kept_mass = mass_before + tl.sum(tl.where(places <= end, cut_masses, 0.0), 0)
    # The first candidates in order: those of bins up to `last`, as far as they are kept.
    can_be_drawn = is_candidate & (bins <= last) & (places <= end)
    sums = mass_before_first + tl.cumsum(tl.where(can_be_drawn, masses, 0.0), 0)
    place = look_up(sums, u * kept_mass)
    return at(keys & 0xFFFFFFFF, places, place).to(tl.int32)


@triton.jit
def _from(  # type: ignore[no-untyped-def]
    row_ptr, vocab_size, peak, per_temperature, reach, min_p, lowest, BLOCK: tl.constexpr
):
    """How many tokens within reach have a logit of `lowest` (as `_ordered`) or more, and their mass."""
    counts = tl.zeros([BLOCK], tl.int32)
    masses = tl.zeros([BLOCK], tl.float64)
    for start in range(0, vocab_size, BLOCK):
        logits = load_logits(row_ptr, start + tl.arange(0, BLOCK), vocab_size)
        below = _below(logits, peak, per_temperature)
        mass = _masses(below)
        is_in = (below <= reach) & (mass >= min_p) & (_ordered(logits) >= lowest)
        counts += is_in.to(tl.int32)
        masses += tl.where(is_in, mass, 0.0).to(tl.float64)
    return tl.sum(counts, 0), tl.sum(masses, 0)


@triton.jit
def _search_and_draw(  # type: ignore[no-untyped-def]
    row_ptr,
    vocab_size,
    peak,
    per_temperature,
    reach,
    min_p,
    cut,
    first,
    enough,
    enough_mass,
    u,
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The same over the whole row, however many logits are equal."""
    width = reach / BINS / per_temperature  # in logits
    # The lowest kept logit: `above` never has enough at or over it, `at_or_above` does (or is the lowest of all).
    at_or_above = _ordered(peak - (cut + 2) * width).to(tl.int64)
    above = _ordered(peak).to(tl.int64) + 1
    while above - at_or_above > 1:
        middle = (above + at_or_above) >> 1
        seen, mass = _from(row_ptr, vocab_size, peak, per_temperature, reach, min_p, middle, BLOCK)
        if (seen >= enough) | (mass >= enough_mass):
            at_or_above = middle
        else:
            above = middle
    lowest = at_or_above
    count_above, mass_above = _from(row_ptr, vocab_size, peak, per_temperature, reach, min_p, lowest + 1, BLOCK)
    count, mass = _from(row_ptr, vocab_size, peak, per_temperature, reach, min_p, lowest, BLOCK)
    one = _masses(_below(_from_ordered(lowest.to(tl.int32)), peak, per_temperature)).to(tl.float64)
    by_mass = tl.ceil(tl.minimum((enough_mass - mass_above) / one, 1e9)).to(tl.int32)
    num_lowest = tl.minimum(tl.maximum(tl.minimum(enough - count_above, by_mass), 1), count - count_above)
    target = u * (mass_above + num_lowest * one)
    # The drawn logit: the largest that passes the target together with those over it.
    passes = lowest
    falls_short = _ordered(peak - tl.maximum(first - 1, 0) * width).to(tl.int64) + 1
    while falls_short - passes > 1:
        middle = (falls_short + passes) >> 1
        seen, mass = _from(row_ptr, vocab_size, peak, per_temperature, reach, min_p, middle, BLOCK)
        if mass > target:
            passes = middle
        else:
            falls_short = middle
    count_above, mass_above = _from(row_ptr, vocab_size, peak, per_temperature, reach, min_p, passes + 1, BLOCK)
    count, mass = _from(row_ptr, vocab_size, peak, per_temperature, reach, min_p, passes, BLOCK)
    one = _masses(_below(_from_ordered(passes.to(tl.int32)), peak, per_temperature)).to(tl.float64)
    num_equal = tl.where(passes == lowest, num_lowest, count - count_above)
    rank = tl.minimum(tl.maximum((target - mass_above) / one, 0.0), (num_equal - 1).to(tl.float64)).to(tl.int32)
    token = 0
    num_passed = 0
    for start in range(0, vocab_size, BLOCK):
        tokens = start + tl.arange(0, BLOCK)
        logits = load_logits(row_ptr, tokens, vocab_size)
        is_equal = (_ordered(logits) == passes) & (tokens < vocab_size)
        places = num_passed + tl.cumsum(is_equal.to(tl.int32), 0) - 1
        token += tl.sum(tl.where(is_equal & (places == rank), tokens, 0), 0)
        num_passed += tl.sum(is_equal.to(tl.int32), 0)
    return token


def sample_filtered(
    logits: Tensor,
    seats: Tensor,
    table: SamplingTable,
    scratch: SampleScratch,
    tokens: Tensor,
    *,
    compile_only: bool = False,
) -> Tensor:
    """Fills tokens at the rows that `sample`, called before with the same arguments, left; two launches."""
    num_rows, vocab_size = logits.shape
    block = _block(num_rows, vocab_size, scratch.block)
    num_blocks = triton.cdiv(vocab_size, block)
    bins, capacity = scratch.histogram.shape[1], scratch.candidates.shape[1]
    assert vocab_size <= MAX_VOCAB
    assert logits.stride(1) == 1 and seats.shape == tokens.shape == (num_rows,)
    assert scratch.histogram.shape[0] >= num_rows
    grid = (num_blocks, num_rows)
    launcher(_find_bins_kernel, grid, compile_only=compile_only)(
        logits,
        seats,
        table.temperature,
        table.top_p,
        table.min_p,
        table.top_k,
        table.seed,
        table.output_index,
        scratch.peaks,
        scratch.totals,
        scratch.reaches,
        scratch.histogram,
        scratch.cuts,
        scratch.cut_masses,
        scratch.arrived[1],
        logits.stride(0),
        vocab_size,
        num_blocks,
        BLOCK=block,
        BINS=bins,
        num_warps=8,
    )
    launcher(_finish_kernel, grid, compile_only=compile_only)(
        tokens,
        logits,
        seats,
        table.temperature,
        table.top_p,
        table.min_p,
        table.top_k,
        scratch.peaks,
        scratch.totals,
        scratch.reaches,
        scratch.candidates,
        scratch.num_candidates,
        scratch.cuts,
        scratch.cut_masses,
        scratch.arrived[2],
        logits.stride(0),
        vocab_size,
        num_blocks,
        BLOCK=block,
        SEARCH_BLOCK=scratch.block,
        BINS=bins,
        CAPACITY=capacity,
        FEW=min(FEW, capacity // 2),
        num_warps=8,
    )
    return tokens


def _block(num_rows: int, vocab_size: int, block: int) -> int:
    """Small blocks fill the card with few rows; the last program's registers leave room for few programs at once, and
    those had better be large. Counts and candidates do not depend on it: integers are summed, and keys are sorted."""
    return block if num_rows * vocab_size <= 512 * block else 4 * block
