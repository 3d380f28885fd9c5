"""Who is there: every process writes itself into a hash once a second, anybody can read it.

One hash, `<prefix>:instances`, field `service/instance`, value a JSON `Instance`. A process that stops
removes itself; one that dies is stale after `HEARTBEAT_LAPSE_S` and swept after `SWEEP_S`.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version

import msgspec

from shared.messages import HEARTBEAT_LAPSE_S, HEARTBEAT_S, Instance
from shared.streams import LOST_CONNECTION, Bus

log = logging.getLogger(__name__)

SWEEP_S = 30.0
SERVICES = ("gateway", "tokenizer", "scheduler", "gpu_worker")
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Instance)


def _version() -> str:
    try:
        return version("sapwood")
    except PackageNotFoundError:
        return ""


def is_fresh(instance: Instance, now: float) -> bool:
    return now - instance.at < HEARTBEAT_LAPSE_S


def stands_by(one: Instance, instances: Iterable[Instance], now: float) -> bool:
    """Whether it is a scheduler that is heard of and waits while another leads."""
    return (
        one.service == "scheduler"
        and not one.is_ready
        and is_fresh(one, now)
        and any(other.service == "scheduler" and other.is_ready and is_fresh(other, now) for other in instances)
    )


def missing(instances: Iterable[Instance], now: float) -> list[str]:
    """What is not as it should be, in words; empty when every service is there, every process that registered has been
    heard of lately, and each says that it is ready, or stands by: one scheduler leads, others wait."""
    seen = list(instances)
    faults = [
        f"{one.service}/{one.instance} is starting"
        if is_fresh(one, now)
        else f"{one.service}/{one.instance} was last heard of {now - one.at:.0f} s ago"
        for one in seen
        if not (is_fresh(one, now) and one.is_ready) and not stands_by(one, seen, now)
    ]
    there = {one.service for one in seen}
    return [f"no {service}" for service in SERVICES if service not in there] + faults


class Registry:
    """This process's place in the hash, and a view of the others."""

    def __init__(self, bus: Bus, service: str, instance: str) -> None:
        self._bus = bus
        self._key = bus.key("instances")
        self._field = f"{service}/{instance}"
        self._own = Instance(
            service=service,
            instance=instance,
            host=socket.gethostname(),
            pid=os.getpid(),
            started_at=time.time(),
            at=time.time(),
            is_ready=False,
            version=_version(),
        )

    def update(
        self, *, is_ready: bool, model: str | None = None, max_model_len: int | None = None, address: str = ""
    ) -> None:
        """What the next heartbeats say of this process."""
        self._own = msgspec.structs.replace(
            self._own, is_ready=is_ready, model=model, max_model_len=max_model_len, address=address
        )

    @property
    def is_ready(self) -> bool:
        """What the next heartbeat says of this process."""
        return self._own.is_ready

    async def beat(self) -> None:
        self._own = msgspec.structs.replace(self._own, at=time.time())
        await self._bus.client.hset(self._key, self._field, _encoder.encode(self._own))

    async def run(self, on_view: Callable[[list[Instance]], None] | None = None) -> None:
        """Beats for ever; hands a fresh view of all instances to `on_view` each time, if given."""
        while True:
            try:
                await self.beat()
                if on_view is not None:
                    told = self._own
                    on_view(await self.view())
                    if self._own is not told:
                        await self.beat()  # what it saw has changed what we are
            except LOST_CONNECTION as error:
                log.warning("heartbeat: %s", error)
            await asyncio.sleep(HEARTBEAT_S)

    async def view(self) -> list[Instance]:
        """All instances, stale ones included; sweeps those long gone."""
        now = time.time()
        instances = []
        for field, value in (await self._bus.client.hgetall(self._key)).items():
            try:
                instance = _decoder.decode(value)
            except msgspec.DecodeError:
                log.error("registry: %s does not decode, removed", field)
                await self._bus.client.hdel(self._key, field)
                continue
            if now - instance.at > SWEEP_S:
                await self._bus.client.hdel(self._key, field)
            else:
                instances.append(instance)
        return instances

    async def mark_down(self) -> None:
        """Says on behalf of this process, which has ended, that it is not ready; nothing if it is not there."""
        value = await self._bus.client.hget(self._key, self._field)
        if value is not None:
            down = msgspec.structs.replace(_decoder.decode(value), is_ready=False, at=time.time())
            await self._bus.client.hset(self._key, self._field, _encoder.encode(down))

    async def leave(self) -> None:
        """Removes this process; a broker that is gone needs no farewell."""
        try:
            await asyncio.wait_for(self._bus.client.hdel(self._key, self._field), 2)
        except (TimeoutError, *LOST_CONNECTION) as error:
            log.warning("could not deregister: %s", error)
