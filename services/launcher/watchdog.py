"""Finds processes that run and do nothing: what was ready and has not been heard of for long is killed."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping

from services.launcher.process import Child
from shared.messages import HEARTBEAT_LAPSE_S, Instance
from shared.registry import Registry
from shared.streams import LOST_CONNECTION

log = logging.getLogger(__name__)

LOOK_S = 2.0


def hung(instances: Iterable[Instance], now: float, silent_s: float) -> list[Instance]:
    """Those that were ready and are silent for so long, while others are heard of: if none is, it is the broker that
    was away."""
    seen = list(instances)
    if not any(now - one.at < HEARTBEAT_LAPSE_S for one in seen):
        return []
    return [one for one in seen if one.is_ready and now - one.at > silent_s]


class Watch:
    """Who is hung at two looks in a row: right after the broker was away, or the machine slept, whoever has not beaten
    yet looks so at the first."""

    def __init__(self, silent_s: float) -> None:
        self._silent_s = silent_s
        self._before: frozenset[str] = frozenset()

    def look(self, instances: Iterable[Instance], now: float) -> list[Instance]:
        """To be called every LOOK_S, which is longer than a heartbeat takes."""
        found = hung(instances, now, self._silent_s)
        before, self._before = self._before, frozenset(one.instance for one in found)
        return [one for one in found if one.instance in before]


async def watch(registry: Registry, children: Mapping[str, Child], silent_s: float, say: Callable[[str], None]) -> None:
    """Kills the hung among the children, by name, for ever; whoever supervises them starts them again."""
    looks = Watch(silent_s)
    while True:
        await asyncio.sleep(LOOK_S)
        try:
            instances = await registry.view()
        except LOST_CONNECTION as error:
            log.warning("watchdog: %s", error)
            continue
        now = time.time()
        for one in looks.look(instances, now):
            child = children.get(one.instance)
            if child is not None and child.is_running and child.age_s > silent_s:
                say(f"{one.instance} runs but was last heard of {now - one.at:.0f} s ago; killing it")
                child.kill()
