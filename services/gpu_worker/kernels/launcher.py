"""To launch a kernel, or only to compile it."""

from collections.abc import Callable
from functools import partial
from typing import Any


def launcher(kernel: Any, grid: tuple[int, ...], *, compile_only: bool) -> Callable[..., object]:
    """What a kernel's arguments go to. compile_only: the device is left alone, so that any thread may do it; a launch
    with such arguments then finds its kernel compiled."""
    return partial(kernel.warmup, grid=grid) if compile_only else kernel[grid]
