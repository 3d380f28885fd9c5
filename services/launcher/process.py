"""One child process: started on a leash, its output read, stopped within a time."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from services.launcher.leash import leashed
from services.launcher.output import reason_for_end, tail
from services.launcher.plan import ProcessPlan

LINE_LIMIT = 1 << 20
POLL_S = 0.05
PACKAGE_ROOT = str(Path(__file__).parents[2])


def child_environment(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Children find our packages wherever the launcher was started, and write their lines at once."""
    path = os.pathsep.join(part for part in (PACKAGE_ROOT, env.get("PYTHONPATH")) if part)
    return {**env, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


class Child:
    """A process of the set. `start` may be called again when it has ended."""

    def __init__(self, plan: ProcessPlan, on_line: Callable[[str, str], None]) -> None:
        self.plan = plan
        self._on_line = on_line
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._lines = tail()
        self._started_at = time.monotonic()

    @property
    def age_s(self) -> float:
        """Seconds since it was last started."""
        return time.monotonic() - self._started_at

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def reason_for_end(self) -> str:
        """Why it ended, in one line."""
        assert self._process is not None and self._process.returncode is not None
        return reason_for_end(self.plan.service, self._process.returncode, self._lines)

    async def start(self) -> None:
        self._lines.clear()
        self._started_at = time.monotonic()
        self._process = await asyncio.create_subprocess_exec(
            *leashed(self.plan.command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**child_environment(), **self.plan.environment},
            limit=LINE_LIMIT,
            start_new_session=True,  # Ctrl-C in the terminal is for the launcher, which stops its children in order
        )
        assert self._process.stdout is not None
        self._reading = asyncio.create_task(self._read(self._process.stdout), name=f"output of {self.name}")

    async def _read(self, output: asyncio.StreamReader) -> None:
        while True:
            try:
                raw = await output.readline()
            except ValueError:  # a line without an end: the reader has dropped what it held
                continue
            if not raw:
                return
            line = raw.decode(errors="replace").rstrip("\r\n")
            self._lines.append(line)
            self._on_line(self.name, line)

    async def wait(self) -> None:
        """Returns when it has ended and its last lines are read."""
        assert self._reading is not None
        await self._ended()
        await asyncio.wait([self._reading], timeout=1)

    async def _ended(self) -> None:
        """asyncio's own `wait` also waits for the end of the output, which a grandchild may hold open."""
        assert self._process is not None
        while self._process.returncode is None:  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(POLL_S)

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, after `grace_s` SIGKILL, to it and whatever it started."""
        if self._process is None:
            return
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended(), grace_s)
        self.kill()
        await self._ended()
        if self._reading is not None:
            await asyncio.wait([self._reading], timeout=1)
            self._reading.cancel()

    def kill(self) -> None:
        """At once, with all of its process group."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
