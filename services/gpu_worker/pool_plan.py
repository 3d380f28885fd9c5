"""How large the page pool gets: as asked for, or as the memory allows; asked before anything is allocated."""

from dataclasses import dataclass

import torch

from services.gpu_worker.kv_cache import KVShape, PagePool
from services.gpu_worker.memory import GIB, available_memory, gib
from shared.errors import ConfigError

_MOST_ON_CPU = 4 * GIB
_SHARE = {"cpu": 0.5, "cuda": 0.9}  # of the memory that the weights leave


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """What was asked for. num_pages 0: as many as kv_memory_bytes hold; that 0 as well: a share of what is left.

    min_tokens: a sequence that the pool has to hold, 0 for any."""

    page_size: int
    num_pages: int
    kv_memory_bytes: int
    min_tokens: int
    device: torch.device
    dtype: torch.dtype

    def check_fits(self, weight_bytes: int) -> None:
        """ConfigError when the weights alone are too much."""
        available = available_memory(self.device)
        if weight_bytes > available:
            raise ConfigError(
                f"the model does not fit: its weights need {gib(weight_bytes)}, "
                f"and {gib(available)} of {self.device} memory is available"
            )

    def num_pages_beside(self, weight_bytes: int, shape: KVShape) -> int:
        """Pages of the pool when weights of that size are still to be loaded; ConfigError when not all fits."""
        self.check_fits(weight_bytes)
        available = available_memory(self.device)
        page_bytes = shape.bytes_per_token(self.dtype) * self.page_size
        num_pages = self.num_pages or self._budget(available - weight_bytes) // page_bytes
        least = -(-max(self.min_tokens, 1) // self.page_size)
        if num_pages < least:
            raise ConfigError(
                f"{num_pages} pages of {self.page_size} tokens cannot hold a sequence of {max(self.min_tokens, 1)} "
                f"tokens, which needs {gib(least * page_bytes)} for keys and values"
            )
        if weight_bytes + num_pages * page_bytes > available:
            raise ConfigError(
                f"the model does not fit: {gib(weight_bytes)} of weights to load and {gib(num_pages * page_bytes)} for "
                f"{num_pages} pages of keys and values are more than the {gib(available)} of {self.device} memory "
                "available"
            )
        return num_pages

    def make(self, num_pages: int, shape: KVShape) -> PagePool:
        return PagePool(num_pages, self.page_size, shape, self.dtype, self.device)

    def _budget(self, left: int) -> int:
        if self.kv_memory_bytes:
            return self.kv_memory_bytes
        share = int(max(0, left) * _SHARE[self.device.type])
        return min(share, _MOST_ON_CPU) if self.device.type == "cpu" else share
