"""Merging of partial results, by itself."""

import pytest
import torch
import triton
import triton.language as tl

from services.gpu_worker.kernels.merge import merge_partials, merge_reference
from tests.services.gpu_worker.kernels.kernel_testing import assert_close, poison

HEADS, GROUP, WIDTH = 2, 3, 20


@triton.jit
def _merge_kernel(  # type: ignore[no-untyped-def]
    out_ptr, partial_ptr, log_weight_ptr, list_ptr, first, count, list_base, num_parts, HAS_LIST: tl.constexpr
):
    head = tl.program_id(0)
    merged = merge_partials(
        partial_ptr, log_weight_ptr, head, first, count, list_ptr, list_base, num_parts, 2, 3, 20, 4, 32, 4, HAS_LIST
    )
    rows, dims = tl.arange(0, 4)[:, None], tl.arange(0, 32)[None, :]
    tl.store(out_ptr + (head * 3 + rows) * 20 + dims, merged, mask=(rows < 3) & (dims < 20))


@pytest.mark.parametrize(
    ("count", "listed"), [(1, []), (9, []), (1, [2]), (3, [5, 0, 4]), (4, [1, 3, 0, 2, 6, 7])], ids=str
)
def test_matches_reference(count: int, listed: list[int], device: torch.device) -> None:
    """The first parts follow each other from place 2 on; the listed ones lie anywhere from place 20 on."""
    partials = poison(torch.empty(32, HEADS, GROUP, WIDTH, device=device))
    log_weights = poison(torch.empty(32, HEADS, GROUP, device=device))
    places = [*range(2, 2 + count), *(20 + place for place in listed)]
    partials[places] = torch.randn(len(places), HEADS, GROUP, WIDTH, device=device)
    log_weights[places] = 40 * torch.randn(len(places), HEADS, GROUP, device=device)
    if len(places) > 4:
        log_weights[places[:2]] = -torch.inf  # parts that saw nothing, and are whatever they are
        log_weights[places[-1], 0, 0] = log_weights[places, 0, 0].max() + 200  # one that outweighs all others
    out = poison(torch.empty(HEADS, GROUP, WIDTH, device=device))
    list_ptr = torch.tensor([*listed, 0], dtype=torch.int32, device=device)
    _merge_kernel[(HEADS,)](out, partials, log_weights, list_ptr, 2, count, 20, len(places), HAS_LIST=bool(listed))
    assert_close("out", out, merge_reference(partials[places].cpu(), log_weights[places].cpu()))
