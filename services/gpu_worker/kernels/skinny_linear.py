"""Linear layer for few rows: y = x W^T with W streamed once, and what stands around it in a decoder layer fused in.

    y[m, n] = sum_k norm(x)[m, k] W[n, k] + bias[n]          norm(x)[m] = x[m] / rms(x[m]) * norm_weight, or x itself
    out = y + residual,  or  silu(y[:, :I]) * y[:, I:]       with N = 2 I: gate and up in one W

Reads NK elements of W and MK of x, writes MN: memory bound for M below some 250 rows, so W must flow at the speed of
a copy. The norm costs no pass of its own: 1 / rms(x[m]) is a factor of the whole row, so a program sums the squares
as it walks over K and scales at the end (float16 could overflow before that scaling: there a program walks over x
twice). A tile of y is [BLOCK_N, BLOCK_M], so that W fills the rows of the matrix unit and the few rows of x its
columns; with one row of x there is a way without matrix units.

SPLIT_K programs share a tile of y: each writes its partial sums, and the one that arrives last adds all of them in
the order of K. So the result depends neither on timing nor on what other rows hold.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from services.gpu_worker.kernels.dot import IS_INTERPRETED, dot_add

MAX_ROWS = 256


@dataclass(frozen=True, slots=True)
class SkinnyConfig:
    """How a product is cut up.

    block_n: rows of W in a program; with silu_and_mul half of them gate. block_k: of K in a step of the loop.
    split_k: programs along K. uses_dot: matrix units; without them, one row of x only. num_stages: tiles of W on
    their way to a program. is_dependent: a program may start, and fetch `prefetch` bytes of each of its rows of W
    into L2, while the kernel before it ends (programmatic dependent launch). block_m: rows of x in a program, at most;
    x is read once for every block_n rows of W, and W once for every block_m rows of x, from L2 at best. norms_before:
    for callers: the norm is better computed by a kernel of its own."""

    block_n: int
    block_k: int
    split_k: int = 1
    uses_dot: bool = True
    num_warps: int = 4
    num_stages: int = 4
    is_dependent: bool = False
    prefetch: int = 0
    block_m: int = 64
    norms_before: bool = False


class Workspace:
    """What the split products of one stream share: partial sums, and counters that every kernel leaves at zero."""

    def __init__(self, device: torch.device) -> None:
        self.partials = torch.empty(0, dtype=torch.float32, device=device)
        self.counters = torch.zeros(0, dtype=torch.int32, device=device)

    def reserve(self, rows: int, outputs: int, config: SkinnyConfig) -> None:
        """Makes room for products of `rows` rows of x with a W of `outputs` rows. It may move the buffers, so a graph
        is captured after everything is reserved."""
        if config.split_k == 1:
            return
        device = self.partials.device
        tiles = _tiles(rows, outputs, config)
        partials = tiles * config.split_k * (config.block_n + 1) * block_rows(rows, config)
        if self.partials.numel() < partials:
            self.partials = torch.empty(partials, dtype=torch.float32, device=device)
        if self.counters.numel() < tiles:
            self.counters = torch.zeros(tiles, dtype=torch.int32, device=device)


def block_rows(rows: int, config: SkinnyConfig) -> int:
    """Columns of y's tile, a power of two: 1 without matrix units, otherwise 8 to config.block_m."""
    return min(config.block_m, max(8, triton.next_power_of_2(rows))) if config.uses_dot else 1


def _tiles(rows: int, outputs: int, config: SkinnyConfig) -> int:
    return int(triton.cdiv(rows, block_rows(rows, config)) * triton.cdiv(outputs, config.block_n))


def prefetch_bytes(config: SkinnyConfig, width: int) -> int:
    """What may be fetched ahead of a row: 16 bytes at a time, and not past the row's end in the shortest split."""
    per_split = triton.cdiv(triton.cdiv(width, config.block_k), config.split_k) * config.block_k
    shortest = max(0, width - (config.split_k - 1) * per_split)
    return min(config.prefetch, 2 * shortest) // 16 * 16 if width % 8 == 0 else 0


def skinny_linear_reference(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
    silu_and_mul: bool = False,
) -> Tensor:
    """The definition, in the dtype of its arguments: x [M, K], weight [N, K], bias [N] -> [M, N], or [M, N / 2] with
    silu_and_mul; residual [M, N], norm_weight [K]."""
    if norm_weight is not None:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * norm_weight
    out = x @ weight.T
    if bias is not None:
        out = out + bias
    if silu_and_mul:
        gate, up = out.chunk(2, -1)
        out = torch.nn.functional.silu(gate) * up
    return out if residual is None else out + residual


@triton.jit
def _prefetch_l2(address, BYTES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Asks for BYTES bytes (a multiple of 16) at each address to come to L2, and does not wait."""
    tl.inline_asm_elementwise(
        "{ cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0; }",
        "=r,l,n",
        [address, BYTES],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _inverse_rms(x_rows, is_row, K, eps, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):  # type: ignore[no-untyped-def]
    """[BLOCK_M, 1] pointers to rows -> [BLOCK_M]."""
    squares = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, K, BLOCK_K):
        ks = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_rows + ks[None, :], mask=is_row[:, None] & (ks < K)[None, :], other=0.0).to(tl.float32)
        squares += tl.sum(x * x, 1)
    return tl.rsqrt(squares / K + eps)


@triton.jit
def _multiply_rows(  # type: ignore[no-untyped-def]
    x_rows,  # [BLOCK_M, 1] pointers
    row_starts,  # [BLOCK_N, 1] pointers
    norm_weight_ptr,
    is_row,  # [BLOCK_M]
    scale,  # [BLOCK_M], with NORM_FIRST
    first,
    last,
    K,
    HAS_NORM: tl.constexpr,
    NORM_FIRST: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """W x^T by matrix units, K from `first` to `last` -> [BLOCK_N, BLOCK_M], and the sums of squares of x [BLOCK_M]."""
    squares = tl.zeros([BLOCK_M], tl.float32)
    y = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in tl.range(first, last, BLOCK_K, num_stages=STAGES):
        ks = start + tl.arange(0, BLOCK_K)
        if EVEN_K:
            weight = tl.load(row_starts + ks[None, :], eviction_policy="evict_first")
            x = tl.load(x_rows + ks[None, :], mask=is_row[:, None], other=0.0)
        else:
            is_k = ks < K
            weight = tl.load(row_starts + ks[None, :], mask=is_k[None, :], other=0.0, eviction_policy="evict_first")
            x = tl.load(x_rows + ks[None, :], mask=is_row[:, None] & is_k[None, :], other=0.0)
        if HAS_NORM:
            if EVEN_K:
                norm_weight = tl.load(norm_weight_ptr + ks).to(tl.float32)
            else:
                norm_weight = tl.load(norm_weight_ptr + ks, mask=is_k, other=0.0).to(tl.float32)
            wide = x.to(tl.float32)
            if NORM_FIRST:
                wide *= scale[:, None]
            else:
                squares += tl.sum(wide * wide, 1)
            x = (wide * norm_weight[None, :]).to(x.dtype)
        y = dot_add(weight, tl.trans(x), y)
    return y, squares


@triton.jit
def _multiply_row(  # type: ignore[no-untyped-def]
    x_ptr,
    row_starts,  # [BLOCK_N, 1] pointers
    norm_weight_ptr,
    first,
    last,
    HAS_NORM: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """As `_multiply_rows` for one row of x, by multiplying and adding in float32: -> [BLOCK_N, 1], [1].

    A tile of W is asked for while the one before it is multiplied; the first, ahead of what the kernel before
    writes. x is loaded as if each row of W had its own, since then W can stay in the registers it was loaded to."""
    offsets = tl.arange(0, BLOCK_K)
    everywhere = tl.zeros([BLOCK_N, 1], tl.int32)
    ahead = first + offsets
    mask = (tl.zeros([BLOCK_K], tl.int32) + first < last) if EVEN_K else ahead < last
    weight_ahead = tl.load(row_starts + ahead[None, :], mask=mask[None, :], other=0.0, eviction_policy="evict_first")
    if IS_DEPENDENT:
        gdc_wait()
    squares = tl.zeros([BLOCK_K], tl.float32)
    sums = tl.zeros([BLOCK_N, BLOCK_K // 8], tl.float32)
    for start in tl.range(first, last, BLOCK_K, num_stages=1):
        ks = start + offsets
        is_k = (tl.zeros([BLOCK_K], tl.int32) + start < last) if EVEN_K else ks < last
        weight = weight_ahead.to(tl.float32)
        ahead = ks + BLOCK_K
        mask = (tl.zeros([BLOCK_K], tl.int32) + (start + BLOCK_K) < last) if EVEN_K else ahead < last
        weight_ahead = tl.load(
            row_starts + ahead[None, :], mask=mask[None, :], other=0.0, eviction_policy="evict_first"
        )
        x = tl.load(x_ptr + (everywhere + ks[None, :]), mask=is_k[None, :], other=0.0).to(tl.float32)
        if HAS_NORM:
            x *= tl.load(norm_weight_ptr + (everywhere + ks[None, :]), mask=is_k[None, :], other=0.0).to(tl.float32)
            once = tl.load(x_ptr + ks, mask=is_k, other=0.0).to(tl.float32)
            squares += once * once
        sums += tl.sum(tl.reshape(weight * x, [BLOCK_N, BLOCK_K // 8, 8]), 2)
    return tl.sum(sums, 1)[:, None], tl.sum(squares, 0, keep_dims=True)


@triton.jit(do_not_specialize=["M"])  # a batch of one, or of 16, is no other kernel
def _skinny_linear_kernel(  # type: ignore[no-untyped-def]
    x_ptr,  # [M, K], rows x_stride apart
    weight_ptr,  # [N or 2N, K]
    bias_ptr,  # [N or 2N]
    residual_ptr,  # [M, N], rows residual_stride apart
    norm_weight_ptr,  # [K]
    out_ptr,  # [M, N], rows out_stride apart
    partials_ptr,  # [tiles, SPLIT_K, BLOCK_N + 1, BLOCK_M]; the last row holds the sums of squares
    counters_ptr,  # [tiles]
    M,
    N,
    K,
    x_stride,
    residual_stride,
    out_stride,
    eps,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_NORM: tl.constexpr,
    NORM_FIRST: tl.constexpr,
    SILU: tl.constexpr,
    USES_DOT: tl.constexpr,
    EVEN_K: tl.constexpr,  # K is a multiple of BLOCK_K
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    STAGES: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
    PREFETCH: tl.constexpr,
):
    # Programs of one tile of W follow each other, so that W is read from memory for the first of them only.
    m_tiles = tl.cdiv(M, BLOCK_M)
    tile, m_tile = tl.program_id(0) // m_tiles, tl.program_id(0) % m_tiles
    split = tl.program_id(1)
    local = tl.arange(0, BLOCK_N)
    if SILU:  # gate and up rows in turn, so that a program has both
        columns = tile * (BLOCK_N // 2) + local // 2
        weight_rows = columns + (local % 2) * N
    else:
        columns = tile * BLOCK_N + local
        weight_rows = columns
    is_column = columns < N
    weight_rows = tl.where(is_column, weight_rows, 0)
    row_starts = weight_ptr + weight_rows.to(tl.int64)[:, None] * K
    inner = tl.arange(0, BLOCK_M)
    rows = m_tile * BLOCK_M + inner
    is_row = rows < M
    x_rows = x_ptr + rows.to(tl.int64)[:, None] * x_stride
    per_split = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLIT_K) * BLOCK_K
    first = split * per_split
    last = tl.minimum(first + per_split, K)

    if IS_DEPENDENT:
        gdc_launch_dependents()
    if USES_DOT:
        if IS_DEPENDENT:
            if PREFETCH > 0:  # of W, which no kernel writes
                _prefetch_l2((row_starts + first).to(tl.int64), PREFETCH)
            gdc_wait()
        scale = tl.full([BLOCK_M], 1.0, tl.float32)
        if NORM_FIRST:
            scale = _inverse_rms(x_rows, is_row, K, eps, BLOCK_M, BLOCK_K)
        y, squares = _multiply_rows(
            x_rows, row_starts, norm_weight_ptr, is_row, scale, first, last, K,
            HAS_NORM, NORM_FIRST, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K, STAGES,
        )  # fmt: skip
    else:
        y, squares = _multiply_row(
            x_ptr, row_starts, norm_weight_ptr, first, last, HAS_NORM, EVEN_K, BLOCK_N, BLOCK_K, IS_DEPENDENT
        )

    if SPLIT_K > 1:
        part = partials_ptr + (tl.program_id(0) * SPLIT_K).to(tl.int64) * ((BLOCK_N + 1) * BLOCK_M)
        mine = part + split * ((BLOCK_N + 1) * BLOCK_M)
        inside = local[:, None] * BLOCK_M + inner[None, :]
        tl.store(mine + inside, y)
        if HAS_NORM:
            tl.store(mine + BLOCK_N * BLOCK_M + inner, squares)
        tl.debug_barrier()  # every thread's partial sums, before the arrival is told
        arrived = tl.atomic_add(counters_ptr + tl.program_id(0), 1, sem="acq_rel")
        if arrived != SPLIT_K - 1:
            return
        tl.store(counters_ptr + tl.program_id(0), 0)  # for the next kernel
        y = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        squares = tl.zeros([BLOCK_M], tl.float32)
        # Small tiles are loaded all at once; large ones would not fit the registers.
        for other in tl.range(SPLIT_K, loop_unroll_factor=SPLIT_K if BLOCK_M <= 64 else 1):
            theirs = part + other * ((BLOCK_N + 1) * BLOCK_M)
            y += tl.load(theirs + inside, cache_modifier=".cg")  # L1 could hold an older launch's
            if HAS_NORM:
                squares += tl.load(theirs + BLOCK_N * BLOCK_M + inner, cache_modifier=".cg")

    if HAS_NORM and not NORM_FIRST:
        y *= tl.rsqrt(squares / K + eps)[None, :]
    if HAS_BIAS:
        y += tl.load(bias_ptr + weight_rows).to(tl.float32)[:, None]
    if SILU:
        gate, up = tl.split(tl.permute(tl.reshape(y, [BLOCK_N // 2, 2, BLOCK_M]), [0, 2, 1]))
        y = gate * tl.sigmoid(gate) * up
        columns = tile * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        is_column = columns < N
    is_output = is_column[:, None] & is_row[None, :]
    if HAS_RESIDUAL:
        residual_rows = residual_ptr + rows.to(tl.int64)[None, :] * residual_stride
        y += tl.load(residual_rows + columns[:, None], mask=is_output, other=0.0).to(tl.float32)
    out_rows = out_ptr + rows.to(tl.int64)[None, :] * out_stride
    tl.store(out_rows + columns[:, None], y.to(out_ptr.dtype.element_ty), mask=is_output)


def skinny_linear(
    x: Tensor,
    weight: Tensor,
    config: SkinnyConfig,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
    silu_and_mul: bool = False,
    out: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    workspace: Workspace | None = None,
) -> Tensor:
    """As the reference, for 1 to MAX_ROWS rows of bfloat16 or float16; sums are in float32.

    x, residual and out: rows may be apart, elements may not. weight: contiguous. out: where to write, may be
    `residual`. out_dtype: without `out`; default: x's. workspace: for configs that split K; None makes a new one."""
    rows, width = x.shape
    outputs = weight.shape[0] // 2 if silu_and_mul else weight.shape[0]
    if out is None:
        out = x.new_empty((rows, outputs), dtype=out_dtype or x.dtype)
    _check(x, weight, config, bias, residual, norm_weight, silu_and_mul, out)
    workspace = Workspace(x.device) if workspace is None else workspace
    workspace.reserve(rows, weight.shape[0], config)
    is_dependent = config.is_dependent and not IS_INTERPRETED.value
    _skinny_linear_kernel[(_tiles(rows, weight.shape[0], config), config.split_k)](
        x, weight,
        weight if bias is None else bias,
        x if residual is None else residual,
        weight if norm_weight is None else norm_weight,
        out, workspace.partials, workspace.counters,
        rows, outputs, width,
        x.stride(0), 0 if residual is None else residual.stride(0), out.stride(0),
        eps,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        HAS_NORM=norm_weight is not None,
        NORM_FIRST=norm_weight is not None and config.uses_dot and x.dtype is torch.float16,
        SILU=silu_and_mul,
        USES_DOT=config.uses_dot,
        EVEN_K=width % config.block_k == 0,
        BLOCK_M=block_rows(rows, config),
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        SPLIT_K=config.split_k,
        STAGES=config.num_stages,
        IS_DEPENDENT=is_dependent,
        PREFETCH=prefetch_bytes(config, width) if is_dependent else 0,
        num_warps=config.num_warps,
        launch_pdl=is_dependent,
    )  # fmt: skip
    return out


def _check(
    x: Tensor,
    weight: Tensor,
    config: SkinnyConfig,
    bias: Tensor | None,
    residual: Tensor | None,
    norm_weight: Tensor | None,
    silu_and_mul: bool,
    out: Tensor,
) -> None:
    rows, width = x.shape
    assert 1 <= rows <= (MAX_ROWS if config.uses_dot else 1), f"{rows} rows"
    assert x.dtype in (torch.bfloat16, torch.float16) and weight.dtype is x.dtype, f"{x.dtype}, {weight.dtype}"
    assert x.stride(1) == 1 and weight.shape[1] == width and weight.is_contiguous()
    assert not silu_and_mul or weight.shape[0] % 2 == 0
    outputs = weight.shape[0] // 2 if silu_and_mul else weight.shape[0]
    assert out.shape == (rows, outputs) and out.stride(1) == 1
    assert bias is None or (bias.shape == weight.shape[:1] and bias.is_contiguous())
    assert residual is None or (residual.shape == out.shape and residual.stride(1) == 1)
    assert norm_weight is None or (norm_weight.shape == (width,) and norm_weight.is_contiguous())
