"""A step's attention on a GPU: one plan for all layers, kernels for rows that decode and for chunks in prefill."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.gpu_worker.cuda.step_rows import StepRows
from services.gpu_worker.kernels.decode_attention import NewTokens, decode_attention
from services.gpu_worker.kernels.extend_attention import ExtendTiling, choose_tiling, extend_attention
from services.gpu_worker.kernels.group_tables import DeviceGroups
from services.gpu_worker.kernels.tile_shape import TileShape
from services.gpu_worker.kernels.work_list import DecodePlan
from services.gpu_worker.kv_cache import LayerPages, PagePool
from services.gpu_worker.model_config import DecoderConfig
from services.gpu_worker.prefix_groups import MAX_DEPTH, GroupTables

_WIDE_TILE = TileShape(block_tokens=32, num_warps=4, num_stages=2, programs_per_sm=2, block_rows=64)
_WIDE_TILING = ExtendTiling(block_m=64, block_n=32, num_warps=4, num_stages=2)
"""For float32, which serves comparisons, not speed."""


class StepAttention:
    """The plans and scratch of attention, made once for up to max_decode rows that decode.

    `begin` once a step, then `attend` in every layer. Groups serve layers that see everything before them. scales:
    float32 [Hkv] of a pool in float8, else None: checkpoints give none, so keys and values are kept as they are."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, pool: PagePool, max_decode: int) -> None:
        """dtype: of queries."""
        num_kv_heads, head_dim = config.num_kv_heads, config.head_dim
        device, page_size = pool.storage.device, pool.page_size
        is_float8 = pool.storage.dtype is torch.float8_e4m3fn
        self.scales = torch.ones(num_kv_heads, dtype=torch.float32, device=device) if is_float8 else None
        is_wide = dtype is torch.float32  # blocks of twice the bytes
        group_size = config.num_heads // num_kv_heads
        max_partials = MAX_DEPTH * max_decode
        self._page_size = page_size
        self._scale = head_dim**-0.5
        self._head_dim, self._group_size = head_dim, group_size
        self._fixed_tiling = _WIDE_TILING if is_wide and device.type == "cuda" else None
        self._tiling = self._fixed_tiling or choose_tiling(head_dim)
        self.tile_rows = self._tiling.rows(group_size)
        tile = _WIDE_TILE if is_wide else None
        self._groups = DeviceGroups(max_decode, max_partials, num_kv_heads, group_size, head_dim, device, tile=tile)
        self._plans = {
            window: DecodePlan(
                max_decode,
                None,
                num_kv_heads,
                group_size,
                head_dim,
                device,
                window=window,
                max_group_partials=0 if window is not None else max_partials,
                tile=tile,
            )
            for window in set(config.windows)
        }
        self._rows: StepRows | None = None
        self._num_decode = self._num_tiles = 0
        self._used_groups: DeviceGroups | None = None

    def load_groups(self, tables: GroupTables, seats: npt.NDArray[np.int32]) -> None:
        """Which prefixes the rows that decode share, for steps with has_groups."""
        self._groups.load(tables, seats.tolist())

    def begin(
        self, rows: StepRows, *, num_decode: int, num_tiles: int, has_groups: bool, longest: int | None = None
    ) -> None:
        """num_decode: rows, from the first, among which sequences in decode are; num_tiles: places in the list of
        tiles of chunks, 0 without chunks; longest: the most tokens that a row of a chunk sees, None where that is
        another number every time, in a captured step."""
        self._rows, self._num_decode, self._num_tiles = rows, num_decode, num_tiles
        self._tiling = self._fixed_tiling or choose_tiling(self._head_dim, longest)
        assert self._tiling.rows(self._group_size) == self.tile_rows, "the list of tiles was made for others"
        self._used_groups = self._groups if has_groups else None
        if not num_decode:
            return
        for window, plan in self._plans.items():
            groups = self._used_groups if window is None else None
            plan.update(rows.lengths[:num_decode], rows.seats[:num_decode], groups)

    @property
    def takes_new_tokens(self) -> bool:
        """Whether `attend_new` serves this step: only sequences in decode, and no groups."""
        return not self._num_tiles and self._used_groups is None

    def attend_new(
        self, query: Tensor, new: NewTokens, page_tables: Tensor, pages: LayerPages, window: int | None
    ) -> Tensor:
        """As `attend`, from heads that are not rotated yet; writes keys and values to the pages as well."""
        rows = self._rows
        assert rows is not None and self.takes_new_tokens
        count = self._num_decode
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        decode_attention(
            query,
            pages.keys,
            pages.values,
            out,
            rows.seats[:count],
            rows.lengths[:count],
            page_tables,
            self._plans[window],
            page_size=self._page_size,
            scale=self._scale,
            window=window,
            new=new,
            key_scales=self.scales,
            value_scales=self.scales,
        )
        return out

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, page_tables: Tensor, pages: LayerPages, window: int | None
    ) -> Tensor:
        """query [N, H, D], the step's own keys and values [N, Hkv, D], which are in the pages too -> [N, H, D]."""
        rows = self._rows
        assert rows is not None
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        count = self._num_decode
        if count:  # writes zeros where no sequence decodes, which chunks then overwrite
            decode_attention(
                query[:count],
                pages.keys,
                pages.values,
                out[:count],
                rows.seats[:count],
                rows.lengths[:count],
                page_tables,
                self._plans[window],
                page_size=self._page_size,
                scale=self._scale,
                window=window,
                groups=self._used_groups if window is None else None,
                key_scales=self.scales,
                value_scales=self.scales,
            )
        if self._num_tiles:
            extend_attention(
                query,
                keys,
                values,
                pages.keys,
                pages.values,
                page_tables,
                rows.part_seats,
                rows.part_firsts,
                rows.part_starts,
                rows.part_counts,
                rows.tiles,
                rows.num_tiles,
                out,
                self._page_size,
                self._scale,
                window,
                key_scales=self.scales,
                value_scales=self.scales,
                tiling=self._tiling,
            )
        return out
