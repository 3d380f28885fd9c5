"""Sizes that steps are filled up to, so that few graphs serve all of them."""

import bisect


def bucket_sizes(largest: int) -> list[int]:
    """1, 2, 4, 8, then in steps of 8 up to 64, of 16 up to 256, of 32 up to 512 and of an eighth beyond; `largest` is
    the last."""
    sizes = [1, 2, 4]
    while sizes[-1] < largest:
        last = sizes[-1]
        step = 4 if last < 8 else 8 if last < 64 else 16 if last < 256 else 32 if last < 512 else last // 8
        sizes.append(last + step)
    return [size for size in sizes if size < largest] + [largest]


class Buckets:
    def __init__(self, largest: int) -> None:
        self.sizes = bucket_sizes(largest)

    def fill(self, size: int) -> int:
        """The smallest bucket that holds `size`, at least 1."""
        return self.sizes[bisect.bisect_left(self.sizes, size)]
