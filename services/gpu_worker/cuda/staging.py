"""Small arrays on their way to the device, without waiting for it."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Staging:
    """Pinned memory in `depth` parts, taken in turn: a step's arrays lie in one part until the step has run. The caller
    sees to it that no more than depth - 1 steps are under way when it turns to the next part."""

    def __init__(self, num_bytes: int, depth: int, device: torch.device) -> None:
        self._parts = [
            torch.empty(num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda") for _ in range(depth)
        ]
        self._turn = 0
        self._used = 0
        self._reserved: Tensor | None = None

    def next_step(self) -> None:
        self._turn = (self._turn + 1) % len(self._parts)
        self._used = 0

    def upload(self, target: Tensor, values: npt.NDArray[np.generic]) -> None:
        """Copies `values` to the front of `target`, flattened, in the order of the current stream."""
        source = self._place(values)
        target.view(-1)[: source.numel()].copy_(source, non_blocking=True)

    def to_device(self, values: npt.NDArray[np.generic], device: torch.device) -> Tensor:
        """A new tensor on the device."""
        source = self._place(values)
        return source.to(device, non_blocking=True) if device.type == "cuda" else source.clone()

    def reserve(self, count: int) -> npt.NDArray[np.int32]:
        """int32 [count], to be filled and then sent, once. What it holds before is anything."""
        source = self._take(4 * count, torch.int32)
        self._reserved = source
        host: npt.NDArray[np.int32] = source.numpy()
        return host

    def send(self, host: npt.NDArray[np.int32], target: Tensor) -> None:
        """Copies what was reserved last to the front of `target`."""
        assert self._reserved is not None and len(self._reserved) == len(host)
        target[: len(host)].copy_(self._reserved, non_blocking=True)
        self._reserved = None

    def _place(self, values: npt.NDArray[np.generic]) -> Tensor:
        flat = torch.from_numpy(np.ascontiguousarray(values).reshape(-1))
        source = self._take(values.nbytes, flat.dtype)
        source.copy_(flat)
        return source

    def _take(self, num_bytes: int, dtype: torch.dtype) -> Tensor:
        part = self._parts[self._turn]
        start = -(-self._used // 16) * 16
        end = start + num_bytes
        if end > len(part):  # more than was planned for: take a part of its own, which torch keeps until it is copied
            return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=part.is_pinned()).view(dtype)
        self._used = end
        return part[start:end].view(dtype)
