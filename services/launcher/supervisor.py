"""Keeps the set running: start, failure before ready, restart after, stop in order."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from services.launcher.process import Child
from shared.errors import ConfigError

RESTART_FIRST_S = 0.5
RESTART_LONGEST_S = 30.0
STEADY_S = 60.0
"""A child that ran for so long starts over with the shortest delay."""

IMMEDIATE_S = 10.0
GIVE_UP_AFTER = 8
"""A child that ends so many times in a row within IMMEDIATE_S of its start will not run here."""


async def nobody_is_told(_: Child) -> None:
    """For a set in which nobody waits for the word."""


class Supervisor:
    """Owns the children, in groups: started in the order of the groups, stopped in the reverse order.

    on_end: called with each child that has ended, before it is started again."""

    def __init__(self, say: Callable[[str], None], on_end: Callable[[Child], Awaitable[None]] = nobody_is_told) -> None:
        self._say = say
        self._on_end = on_end
        self._groups: list[tuple[list[Child], float]] = []

    @property
    def children(self) -> list[Child]:
        return [child for group, _ in self._groups for child in group]

    async def start(self, group: Sequence[Child], *, grace_s: float) -> None:
        """Starts a group, which will have `grace_s` to stop."""
        self._groups.append((list(group), grace_s))
        for child in group:
            await child.start()

    async def first_end(self) -> None:
        """Raises ConfigError with the reason when a child ends: what is watched until the set is ready."""
        waits = {asyncio.create_task(child.wait()): child for child in self.children}
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
        child = waits[done.pop()]
        raise ConfigError(f"{child.name} did not start: {child.reason_for_end}")

    async def keep_running(self) -> None:
        """Restarts whichever child ends, for ever. Raises ConfigError when one does not stay up."""
        keepers = [asyncio.create_task(self._keep(child), name=f"keep {child.name}") for child in self.children]
        try:
            done, _ = await asyncio.wait(keepers, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for keeper in keepers:
                keeper.cancel()
            await asyncio.wait(keepers)
        done.pop().result()

    async def _keep(self, child: Child) -> None:
        delay = RESTART_FIRST_S
        failures = 0
        while True:
            await child.wait()
            age_s = child.age_s
            failures = failures + 1 if age_s < IMMEDIATE_S else 0
            if failures >= GIVE_UP_AFTER:
                raise ConfigError(
                    f"{child.name} ended {failures} times in a row soon after its start, at last with: "
                    f"{child.reason_for_end}"
                )
            if age_s > STEADY_S:
                delay = RESTART_FIRST_S
            self._say(f"{child.name} ended ({child.reason_for_end}); starting it again in {delay:g} s")
            child.kill()  # what it may have left behind
            await self._on_end(child)
            await asyncio.sleep(delay)
            delay = min(delay * 2, RESTART_LONGEST_S)
            await child.start()

    async def stop(self) -> None:
        """Stops group after group, each within its time; nothing is left."""
        while self._groups:
            group, grace_s = self._groups[-1]
            await asyncio.gather(*(child.stop(grace_s) for child in group))
            self._groups.pop()

    def kill(self) -> None:
        """All at once."""
        for child in self.children:
            child.kill()
