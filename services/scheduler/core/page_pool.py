"""Which of a worker's pages are free."""

from collections.abc import Container, Iterable


class PagePool:
    """The free pages of one worker, numbered 0 .. num_pages - 1. Last freed, first given: it may still be cached."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """`count` pages; there must be as many."""
        assert 0 <= count <= len(self._free), f"{count} pages asked of {len(self._free)}"
        if not count:
            return []
        pages = self._free[-count:]
        del self._free[-count:]
        pages.reverse()
        return pages

    def free(self, pages: Iterable[int]) -> None:
        self._free.extend(pages)

    def keep_only_free(self, held: Container[int]) -> None:
        """Begins with all but the pages `held`."""
        self._free = [page for page in range(self.num_pages - 1, -1, -1) if page not in held]

    def free_pages(self) -> list[int]:
        """A copy of the free list, for checks."""
        return list(self._free)
