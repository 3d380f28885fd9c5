"""One scheduler at a time: a lock in the broker that its holder renews. A second process waits for it."""

import asyncio
import logging

from shared.errors import BusError
from shared.messages import HEARTBEAT_LAPSE_S, HEARTBEAT_S
from shared.streams import LOST_CONNECTION, Bus

log = logging.getLogger(__name__)

_RENEW = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) end return 0"
_RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"


class Leadership:
    """The lock `<prefix>:scheduler-leader`, whose value is the holder's instance name."""

    TTL_MS = int(HEARTBEAT_LAPSE_S * 1000)

    def __init__(self, bus: Bus, instance: str) -> None:
        self._client = bus.client
        self._key = bus.key("scheduler-leader")
        self._instance = instance

    async def acquire(self) -> None:
        """Returns once this process leads."""
        is_told = False
        while True:
            try:
                if await self._client.set(self._key, self._instance, nx=True, px=self.TTL_MS):
                    return
            except LOST_CONNECTION as error:
                log.warning("asking for leadership: %s", error)
            if not is_told:
                log.info("another scheduler leads; waiting")
                is_told = True
            await asyncio.sleep(HEARTBEAT_S / 2)

    async def hold(self) -> None:
        """Renews for ever. Raises BusError once another leads: two schedulers would hand out the same pages."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            try:
                renewed = await self._client.eval(_RENEW, 1, self._key, self._instance, self.TTL_MS)
                if not renewed and not await self._client.set(self._key, self._instance, nx=True, px=self.TTL_MS):
                    raise BusError("another scheduler leads now")
            except LOST_CONNECTION as error:
                log.warning("renewing leadership: %s", error)

    async def release(self) -> None:
        try:
            await asyncio.wait_for(self._client.eval(_RELEASE, 1, self._key, self._instance), 2)
        except (TimeoutError, *LOST_CONNECTION) as error:
            log.warning("giving leadership up: %s", error)
