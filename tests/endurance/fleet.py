"""The set of tests/chaos with a standby, whose processes can be stopped and started in order."""

import asyncio
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp

from shared.messages import HEARTBEAT_S
from shared.registry import Registry
from tests.chaos.cluster import READY_S, Cluster, Process

SCHEDULER_FLAGS = ["--headroom-tokens=32", "--low-water-tokens=16", "--check-ledger"]


class Fleet(Cluster):
    """gateway_flags: besides what the gateways of a Cluster have; the later one of a flag counts."""

    def __init__(self, folder: Path, model: Path, ports: Sequence[int], gateway_flags: Sequence[str] = ()) -> None:
        super().__init__(folder, model, ports)
        self._add_one("scheduler", 1, SCHEDULER_FLAGS)
        for gateway in self.of("gateway"):
            gateway.command += gateway_flags

    async def until_whole(self, within_s: float = READY_S) -> None:
        """Returns once every gateway says that nothing is amiss."""
        deadline = time.monotonic() + within_s
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as http:
            for url in self.urls:
                while True:
                    async with http.get(f"{url}/ready") as response:
                        said = await response.json()
                    if said["status"] == "ready":
                        break
                    assert time.monotonic() < deadline, f"{url}: {said}\n{self.tails()}"
                    await asyncio.sleep(0.1)

    async def until_back(self, process: Process, since: float, within_s: float = READY_S) -> None:
        """Returns once the registry says that a process that was started after `since`, unix seconds, is ready, or
        stands by, and every gateway has seen that."""
        deadline = time.monotonic() + within_s
        while True:
            for one in await Registry(self._bus, "fleet", "fleet").view():
                is_it = (one.service, one.instance) == (process.service, process.name) and one.started_at > since
                if is_it and (one.is_ready or one.service == "scheduler"):
                    await asyncio.sleep(2 * HEARTBEAT_S)
                    return await self.until_whole(within_s)
            assert time.monotonic() < deadline, f"{process.name} does not come back:\n{process.tail()}"
            await asyncio.sleep(0.1)

    async def replace(self, process: Process, within_s: float) -> tuple[int, float]:
        """Asks the process to end, starts it again without a word to the others, and waits until it is back. Returns
        the exit code, and how many seconds it took to end."""
        assert process.popen is not None
        asked = time.time()
        process.is_held = True
        asked_at = time.monotonic()
        process.send(signal.SIGTERM)
        while (code := process.popen.poll()) is None:
            assert time.monotonic() < asked_at + within_s, f"{process.name} does not end:\n{process.tail()}"
            await asyncio.sleep(0.01)
        took_s = time.monotonic() - asked_at
        process.start()
        process.is_held = False
        await self.until_back(process, asked)
        return code, took_s
