"""Captured work: a kernel launch costs the CPU ten times as long as replaying a graph of a hundred."""

from collections.abc import Callable, Hashable

import torch


class Graphs:
    """Functions of fixed shapes over fixed buffers, each captured the second time that it is run: the first run
    compiles its kernels, which cannot happen within a capture. All graphs share one pool of memory: results
    that outlive a run must be in buffers that the function did not allocate.

    is_enabled: without it, as on a CPU, every run is a plain call."""

    def __init__(self, is_enabled: bool) -> None:
        self.is_enabled = is_enabled
        self._pool = torch.cuda.graph_pool_handle() if is_enabled else None
        self._has_run: set[Hashable] = set()
        self._captured: dict[Hashable, torch.cuda.CUDAGraph] = {}

    def run(self, key: Hashable, function: Callable[[], None]) -> None:
        """Does what `function` does, in the order of the current stream.

        key: names the function and everything that it depends on but the contents of its buffers."""
        if not self.is_enabled:
            function()
            return
        graph = self._captured.get(key)
        if graph is None:
            if key not in self._has_run:
                self._has_run.add(key)
                function()
                return
            graph = self._captured[key] = self._capture(function)
        graph.replay()

    def _capture(self, function: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            function()
        return graph

    def __len__(self) -> int:
        return len(self._captured)
