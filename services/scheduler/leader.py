"""One scheduler at a time: a lock in the broker that its holder renews. A second process waits for it."""

import asyncio
import logging
import secrets
import time
from typing import Any

from shared.errors import BusError
from shared.leadership import LOCK, TERM
from shared.messages import HEARTBEAT_LAPSE_S, HEARTBEAT_S
from shared.streams import LOST_CONNECTION, Bus, backoff

log = logging.getLogger(__name__)

POLL_S = HEARTBEAT_S / 4
"""How often one that waits looks whether the lock is free."""

_ACQUIRE = """
local holder = redis.call('get', KEYS[1])
if holder and holder:sub(1, #ARGV[1]) ~= ARGV[1] then return 0 end
local term = math.max(tonumber(redis.call('get', KEYS[2]) or '0') + 1, tonumber(ARGV[4]))
redis.call('set', KEYS[2], string.format('%d', term))
redis.call('set', KEYS[1], ARGV[2], 'px', ARGV[3])
return term
"""
"""A lock that is free or an earlier process of our name held. Terms grow also when the broker has lost its data."""

_RENEW = """
local holder = redis.call('get', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
if tonumber(redis.call('get', KEYS[2]) or '0') > tonumber(ARGV[3]) then return 0 end
redis.call('set', KEYS[1], ARGV[1], 'px', ARGV[2])
return 1
"""
"""A lock that is ours, or has lapsed while nobody else took it: the term tells."""

_RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"


class Leadership:
    """The lock `<prefix>:scheduler-leader`, whose value is the holder's instance name and a mark of its own, so that a
    process that was started again need not wait until its predecessor's time is up."""

    TTL_S = HEARTBEAT_LAPSE_S

    def __init__(self, bus: Bus, instance: str) -> None:
        self._client = bus.client
        self._keys = bus.key(LOCK), bus.key(TERM)
        self._name = f"{instance}/"
        self._mark = f"{instance}/{secrets.token_hex(8)}"
        self._term = 0
        self._sure_until = float("-inf")

    async def acquire(self) -> int:
        """Returns once this process leads, with its term, which is greater than those of all leaders before."""
        is_told = False
        while True:
            try:
                asked_at = time.monotonic()
                now_ms, ttl_ms = int(time.time() * 1000), int(self.TTL_S * 1000)
                term: Any = await self._client.eval(_ACQUIRE, 2, *self._keys, self._name, self._mark, ttl_ms, now_ms)
                if term:
                    self._term, self._sure_until = int(term), asked_at + self.TTL_S
                    return self._term
            except LOST_CONNECTION as error:
                log.warning("asking for leadership: %s", error)
            if not is_told:
                log.info("another scheduler leads; waiting")
                is_told = True
            await asyncio.sleep(POLL_S)

    @property
    def is_sure(self) -> bool:
        """Whether nobody else can lead now. A process that was stopped, or had no broker, for long cannot be sure."""
        return time.monotonic() < self._sure_until

    async def confirm(self) -> None:
        """Returns once this process is sure to lead. Raises BusError if another does."""
        attempt = 0
        while not self.is_sure:
            try:
                await self._renew()
            except LOST_CONNECTION as error:
                log.warning("making sure of leadership: %s", error)
                attempt += 1
                await backoff(attempt)

    async def hold(self) -> None:
        """Renews for ever. Raises BusError once another leads: two schedulers would hand out the same pages."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            try:
                await self._renew()
            except LOST_CONNECTION as error:
                log.warning("renewing leadership: %s", error)

    async def release(self) -> None:
        try:
            await asyncio.wait_for(self._client.eval(_RELEASE, 1, self._keys[0], self._mark), 2)
        except (TimeoutError, *LOST_CONNECTION) as error:
            log.warning("giving leadership up: %s", error)

    async def _renew(self) -> None:
        asked_at = time.monotonic()
        renewed: Any = await self._client.eval(_RENEW, 2, *self._keys, self._mark, int(self.TTL_S * 1000), self._term)
        if not renewed:
            raise BusError("another scheduler leads now")
        self._sure_until = asked_at + self.TTL_S
