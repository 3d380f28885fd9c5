"""The paged pool of keys and values: one tensor for all layers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class KVShape:
    """What a model keeps of a token: keys and values in every layer."""

    num_layers: int
    num_kv_heads: int
    head_dim: int

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * dtype.itemsize


class PagePool:
    """Keys and values of `num_pages` pages in every layer.

    storage: [num_layers, 2, num_kv_heads, num_pages, page_size, head_dim]; keys are [:, 0], values [:, 1]. A head's
    tokens follow each other in memory, in a page, in pages in a row and in a copy of any pages, so that they are
    the matrix that products want. A token's slot is its page times page_size plus its offset. Pages start as
    whatever memory held, so readers must never let a slot that was not written reach a sum, not even with weight
    zero."""

    def __init__(
        self, num_pages: int, page_size: int, shape: KVShape, dtype: torch.dtype, device: torch.device
    ) -> None:
        dims = (shape.num_layers, 2, shape.num_kv_heads, num_pages, page_size, shape.head_dim)
        self.storage = torch.empty(dims, dtype=dtype, device=device)
        self.num_pages = num_pages
        self.page_size = page_size
        self.layers = tuple(LayerPages(layer) for layer in self.storage)

    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies whole pages (source, target) of all layers, as if all at once: no target may be a source."""
        if not pairs:
            return
        sources, targets = torch.tensor(pairs, device=self.storage.device).unbind(1)
        self.storage.index_copy_(3, targets, self.storage.index_select(3, sources))


class LayerPages:
    """One layer's part of the pool.

    pages: [2, H, num_pages, page_size, D]; by_slot: [2, H, num_pages * page_size, D], made of keys and values."""

    __slots__ = ("by_slot", "keys", "pages", "values")

    def __init__(self, pages: Tensor) -> None:
        self.pages = pages
        self.by_slot = pages.flatten(2, 3)
        self.keys, self.values = self.by_slot.unbind(0)

    def write(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """slots [N]; keys, values [N, H, D]."""
        self.keys.index_copy_(1, slots, keys.transpose(0, 1))
        self.values.index_copy_(1, slots, values.transpose(0, 1))
