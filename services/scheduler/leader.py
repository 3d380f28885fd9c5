"""One scheduler at a time: a lock in the broker that its holder renews. A second process waits for it."""

import asyncio
import logging
import secrets
import time
from typing import Any

from shared.errors import BusError
from shared.messages import HEARTBEAT_LAPSE_S, HEARTBEAT_S
from shared.streams import LOST_CONNECTION, Bus

log = logging.getLogger(__name__)

_ACQUIRE = """
local holder = redis.call('get', KEYS[1])
if holder and holder:sub(1, #ARGV[1]) ~= ARGV[1] then return 0 end
local term = math.max(tonumber(redis.call('get', KEYS[2]) or '0') + 1, tonumber(ARGV[4]))
redis.call('set', KEYS[2], string.format('%d', term))
redis.call('set', KEYS[1], ARGV[2], 'px', ARGV[3])
return term
"""
"""A lock that is free or an earlier process of our name held. Terms grow also when the broker has lost its data."""

_RENEW = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) end return 0"
_RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"


class Leadership:
    """The lock `<prefix>:scheduler-leader`, whose value is the holder's instance name and a mark of its own, so that a
    process that was started again need not wait until its predecessor's time is up."""

    TTL_MS = int(HEARTBEAT_LAPSE_S * 1000)

    def __init__(self, bus: Bus, instance: str) -> None:
        self._client = bus.client
        self._key = bus.key("scheduler-leader")
        self._term_key = bus.key("scheduler-term")
        self._name = f"{instance}/"
        self._mark = f"{instance}/{secrets.token_hex(8)}"

    async def acquire(self) -> int:
        """Returns once this process leads, with its term, which is greater than those of all leaders before."""
        is_told = False
        while True:
            try:
                now_ms = int(time.time() * 1000)
                term: Any = await self._client.eval(
                    _ACQUIRE, 2, self._key, self._term_key, self._name, self._mark, self.TTL_MS, now_ms
                )
                if term:
                    return int(term)
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
                renewed = await self._client.eval(_RENEW, 1, self._key, self._mark, self.TTL_MS)
                if not renewed and not await self._client.set(self._key, self._mark, nx=True, px=self.TTL_MS):
                    raise BusError("another scheduler leads now")
            except LOST_CONNECTION as error:
                log.warning("renewing leadership: %s", error)

    async def release(self) -> None:
        try:
            await asyncio.wait_for(self._client.eval(_RELEASE, 1, self._key, self._mark), 2)
        except (TimeoutError, *LOST_CONNECTION) as error:
            log.warning("giving leadership up: %s", error)
