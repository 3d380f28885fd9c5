"""Cases of `kernels/copy_pages.py`: pages of 16 tokens of an 8B model."""

from collections.abc import Iterator

import torch

from services.gpu_worker.bench.case import Case
from services.gpu_worker.kernels.copy_pages import copy_pages, copy_pages_reference


def cases() -> Iterator[Case]:
    storage = torch.randn(32, 2, 8, 1024, 16, 128, dtype=torch.bfloat16, device="cuda")
    for count in (8, 256):
        yield _case(storage, count)


def _case(storage: torch.Tensor, count: int) -> Case:
    order = torch.randperm(storage.shape[3], device="cuda", dtype=torch.int32)
    pairs = order[: 2 * count].reshape(count, 2).contiguous()
    on_device = torch.tensor([count], dtype=torch.int32, device="cuda")

    def check() -> None:
        wanted = storage.clone()
        copy_pages_reference(wanted, pairs, count)
        copy_pages(storage, pairs, on_device)
        assert torch.equal(storage, wanted), "pages differ"

    page_bytes = storage[:, :, :, 0].numel() * storage.element_size()
    return Case(f"{count} pages", lambda: copy_pages(storage, pairs, on_device), check, 2 * count * page_bytes)
