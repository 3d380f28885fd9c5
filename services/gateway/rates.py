"""A key's requests and tokens per minute, counted in the broker for all gateways together.

Two buckets a key, which fill at the limit's pace and hold a minute's worth. A request takes one from the first before
it runs, and its tokens from the second once they are known: a key may go into debt by what runs, and then waits.
"""

import asyncio
from dataclasses import dataclass

from services.gateway.keys import ApiKey
from shared.errors import Overloaded, Unavailable
from shared.streams import LOST_CONNECTION, Bus

PATIENCE_S = 5.0
MINUTE_S = 60.0

_TAKE = """
local now = redis.call('TIME')
now = tonumber(now[1]) + tonumber(now[2]) / 1e6
local held = redis.call('HMGET', KEYS[1], 'requests', 'tokens', 'at')
local at = tonumber(held[3] or now)
local passed = math.max(0, now - at)
local left = {}
local wait = 0
for place = 1, 2 do
    local limit, need = tonumber(ARGV[place]), tonumber(ARGV[place + 4])
    left[place] = math.min(limit, tonumber(held[place] or limit) + passed * limit / 60)
    -- only tokens go into debt; a request bucket below 0 is of a version that took from it while it had no limit
    if place == 1 then left[place] = math.max(0, left[place]) end
    if limit > 0 and left[place] < need then wait = math.max(wait, (need - left[place]) * 60 / limit) end
end
for place, name in ipairs({'requests', 'tokens'}) do
    if tonumber(ARGV[place]) == 0 then
        left[place] = 0
        redis.call('HDEL', KEYS[1], name)  -- full, should it ever have a limit
    else
        if wait == 0 then left[place] = left[place] - tonumber(ARGV[place + 2]) end
        redis.call('HSET', KEYS[1], name, tostring(left[place]))
    end
end
redis.call('HSET', KEYS[1], 'at', string.format('%.6f', now))
redis.call('EXPIRE', KEYS[1], 3600)
return {tostring(left[1]), tostring(left[2]), tostring(wait)}
"""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a key has left. wait_s: until it may ask again; 0: it may now."""

    key: ApiKey
    requests: float
    tokens: float
    wait_s: float

    def headers(self) -> dict[str, str]:
        """As OpenAI's."""
        said = {}
        for name, limit, left in (
            ("requests", self.key.requests_per_minute, self.requests),
            ("tokens", self.key.tokens_per_minute, self.tokens),
        ):
            if limit:
                said[f"x-ratelimit-limit-{name}"] = str(limit)
                said[f"x-ratelimit-remaining-{name}"] = str(max(0, int(left)))
                said[f"x-ratelimit-reset-{name}"] = _duration((limit - left) * MINUTE_S / limit)
        return said


class RateLimited(Overloaded):
    """429: this key has asked for as much as it may for now."""

    code = "rate_limit_exceeded"

    def __init__(self, message: str, allowance: Allowance) -> None:
        super().__init__(message, retry_after_s=allowance.wait_s)
        self.allowance = allowance


class Rates:
    """The buckets `rate:NAME` in the broker."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def take_request(self, key: ApiKey) -> Allowance | None:
        """Counts a request; None: the key has no such limits. Raises RateLimited when it has none left, and Unavailable
        without a broker."""
        if not (key.requests_per_minute or key.tokens_per_minute):
            return None
        try:
            async with asyncio.timeout(PATIENCE_S):
                name, arguments = self._name(key), self._arguments(key, requests=1, tokens=0)
                reply = await self._bus.client.eval(_TAKE, 1, name, *arguments)
        except (TimeoutError, *LOST_CONNECTION):
            raise Unavailable("The broker does not answer; try again.", retry_after_s=1) from None
        allowance = Allowance(key, *map(float, reply))
        if allowance.wait_s > 0:
            which = "requests" if key.requests_per_minute and allowance.requests < 1 else "tokens"
            limit = key.requests_per_minute if which == "requests" else key.tokens_per_minute
            raise RateLimited(f"This API key may use {limit} {which} a minute; try again later.", allowance)
        return allowance

    def charge_tokens(self, key: ApiKey, tokens: int) -> None:
        """Counts the tokens of a request that has run."""
        if key.tokens_per_minute and tokens:
            self._bus.outbox.run_script(_TAKE, self._name(key), *self._arguments(key, requests=0, tokens=tokens))

    def _name(self, key: ApiKey) -> str:
        return self._bus.key(f"rate:{key.name}")

    def _arguments(self, key: ApiKey, *, requests: int, tokens: int) -> list[int]:
        """The limits, what to take, and what must be there for it: one request and some tokens beforehand, nothing
        afterwards."""
        needed = [1, 1] if requests else [-(2**53), -(2**53)]
        return [key.requests_per_minute, key.tokens_per_minute, requests, tokens, *needed]


def _duration(seconds: float) -> str:
    """As `6m0s`, `1.5s` or `20ms`."""
    seconds = max(0.0, seconds)
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"
