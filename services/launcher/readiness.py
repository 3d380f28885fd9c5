"""When is the set ready: all of our processes say so in the registry, and a gateway answers /ready."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import aiohttp

from services.launcher.plan import ProcessPlan
from shared.messages import Instance
from shared.registry import Registry, is_fresh, stands_by
from shared.streams import LOST_CONNECTION, Bus

POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Readiness:
    """How far the start is. waiting: names of our processes that are not ready yet."""

    waiting: list[str]
    ready: int
    model: str | None
    max_model_len: int | None


def judge(plans: Sequence[ProcessPlan], instances: Iterable[Instance], now: float) -> Readiness:
    instances = list(instances)
    seen = {
        one.instance: one
        for one in instances
        if (is_fresh(one, now) and one.is_ready) or stands_by(one, instances, now)
    }
    serving = next((seen[plan.name] for plan in plans if plan.name in seen and seen[plan.name].model), None)
    return Readiness(
        waiting=[plan.name for plan in plans if plan.name not in seen],
        ready=sum(plan.name in seen for plan in plans),
        model=serving.model if serving else None,
        max_model_len=serving.max_model_len if serving else None,
    )


async def wait_until_ready(
    bus: Bus, plans: Sequence[ProcessPlan], url: str, progress: Callable[[str], None]
) -> Readiness:
    """Returns when clients can be served; how long that may take is the model's affair."""
    registry = Registry(bus, "launcher", "launcher")  # looks, and never enters itself
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=3)) as http:
        while True:
            instances: list[Instance] = []
            with contextlib.suppress(*LOST_CONNECTION):  # the broker is starting
                instances = await registry.view()
            readiness = judge(plans, instances, time.time())
            if readiness.waiting:
                progress(f"{readiness.ready} of {len(plans)} ready, waiting for {', '.join(readiness.waiting)}")
            else:
                obstacle = await _ask(http, url)
                if obstacle is None:
                    return readiness
                progress(f"waiting: {obstacle}")
            await asyncio.sleep(POLL_S)


async def _ask(http: aiohttp.ClientSession, url: str) -> str | None:
    """None when /ready answers 200, else what it says."""
    try:
        async with http.get(f"{url}/ready") as response:
            return None if response.status == 200 else (await response.text())[:300]
    except (aiohttp.ClientError, TimeoutError) as error:
        return f"{url} does not answer ({error})"
