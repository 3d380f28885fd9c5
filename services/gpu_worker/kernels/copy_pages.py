"""Copies whole pages of the KV pool, all layers and heads in one launch.

The number of pairs is read on the device, so that a captured graph can copy as many as there are. A pair reads and
writes L * 2 * H * P * D elements.
"""

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048


def copy_pages_reference(storage: Tensor, pairs: Tensor, count: int) -> None:
    """The definition. storage [L, 2, H, pages, P, D]; pairs [capacity, 2] of source and target, `count` of them."""
    sources, targets = pairs[:count].long().unbind(1)
    storage.index_copy_(3, targets, storage.index_select(3, sources))


@triton.jit
def _copy_pages_kernel(storage_ptr, pairs_ptr, count_ptr, head_stride, page_elements, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    pair = tl.program_id(0)
    if pair >= tl.load(count_ptr):
        return
    head = storage_ptr + tl.program_id(1).to(tl.int64) * head_stride
    source = head + tl.load(pairs_ptr + 2 * pair).to(tl.int64) * page_elements
    target = head + tl.load(pairs_ptr + 2 * pair + 1).to(tl.int64) * page_elements
    for start in range(0, page_elements, BLOCK):
        inside = start + tl.arange(0, BLOCK)
        mask = inside < page_elements
        tl.store(target + inside, tl.load(source + inside, mask=mask), mask=mask)


def copy_pages(storage: Tensor, pairs: Tensor, count: Tensor) -> None:
    """As if all pairs were copied at once: no target may be a source, or a target twice.

    storage: [L, 2, H, pages, P, D], contiguous; pairs: int32 [capacity, 2]; count: int32 [1], on the device."""
    layers, both, heads, pages, page_size, head_dim = storage.shape
    assert storage.is_contiguous() and pairs.is_contiguous() and pairs.shape[1] == 2 and count.shape == (1,)
    if pairs.shape[0] == 0:
        return
    page_elements = page_size * head_dim
    block = min(_BLOCK, triton.next_power_of_2(page_elements))
    _copy_pages_kernel[(pairs.shape[0], layers * both * heads)](
        storage, pairs, count, pages * page_elements, page_elements, BLOCK=block, num_warps=max(1, block // 256)
    )
