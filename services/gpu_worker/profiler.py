"""A trace of what some steps do on the CPU and the GPU, for chrome://tracing or Perfetto."""

import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)

MOST_STEPS = 10_000
"""A trace of so many steps takes gigabytes; more are refused."""


@dataclass(frozen=True, slots=True)
class _Request:
    steps: int
    file: Path


class Profiler:
    """Traces steps on request: the next ones that compute something. `request` from any thread, the rest from the one
    that steps."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._request: _Request | None = None
        self._profile: Any = None
        self._left = 0

    def request(self, steps: int, file: Path) -> None:
        """Traces the next `steps` steps to `file`. Raises ValueError when that cannot be done: too many, one is under
        way, or its folder is not there."""
        if not 1 <= steps <= MOST_STEPS:
            raise ValueError(f"{steps} steps cannot be traced, only 1 to {MOST_STEPS}")
        if not file.absolute().parent.is_dir():
            raise ValueError(f"{file}: there is no such folder")
        with self._lock:
            if self._request is not None:
                raise ValueError("steps are being traced already")
            self._request = _Request(steps, file)

    @property
    def is_wanted(self) -> bool:
        return self._request is not None

    def before_step(self) -> None:
        """Begins the trace that was asked for."""
        if self._profile is not None or self._request is None:
            return
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._left = self._request.steps
        self._profile = torch.profiler.profile(activities=activities, acc_events=True)
        self._profile.start()

    def after_step(self, *, has_computed: bool) -> None:
        """Counts a step, and writes the trace after the last."""
        if self._profile is None or not has_computed:
            return
        self._left -= 1
        if self._left == 0:
            self._finish()

    def _finish(self) -> None:
        request, profile = self._request, self._profile
        assert request is not None
        self._profile = None
        try:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            profile.stop()
            part = request.file.with_name(request.file.name + ".part")
            profile.export_chrome_trace(str(part))  # tells of no failure but on stderr
            part.replace(request.file)
            log.warning("a trace of %d steps is in %s", request.steps, request.file)
        except (OSError, RuntimeError) as error:
            log.error("the trace of %d steps could not be written to %s: %s", request.steps, request.file, error)
        finally:
            with self._lock:
                self._request = None
