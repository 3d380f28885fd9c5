"""Compiled grammars in Redis: a value a key, and an index by last use that bounds their bytes together.

Keys as `shared.grammar` says. Both scripts touch the index only together with the value, so that several tokenizer
processes can share it.
"""

import time

from shared.grammar import INDEX_KEY, SIZES_KEY
from shared.streams import Bus

KEEP_S = 24 * 3600
"""An entry that nobody uses for so long goes."""

TOUCH = """
if redis.call('expire', KEYS[1], ARGV[3]) == 0 then return 0 end
redis.call('zadd', KEYS[2], ARGV[2], ARGV[1])
return 1
"""

PUT = """
redis.call('set', KEYS[1], ARGV[5], 'ex', ARGV[3])
redis.call('zadd', KEYS[2], ARGV[2], ARGV[1])
redis.call('hset', KEYS[3], ARGV[1], #ARGV[5])
local total = 0
for _, size in ipairs(redis.call('hvals', KEYS[3])) do total = total + size end
while true do
  local oldest, used = unpack(redis.call('zrange', KEYS[2], 0, 0, 'withscores'))
  if oldest == ARGV[1] or (total <= tonumber(ARGV[4]) and ARGV[2] - used < tonumber(ARGV[3])) then break end
  total = total - (redis.call('hget', KEYS[3], oldest) or 0)
  redis.call('del', ARGV[6] .. oldest)
  redis.call('zrem', KEYS[2], oldest)
  redis.call('hdel', KEYS[3], oldest)
end
return total
"""


class GrammarStore:
    """max_bytes: of all values together; the one put last is kept in any case."""

    def __init__(self, bus: Bus, max_bytes: int) -> None:
        self._bus = bus
        self._max_bytes = max_bytes

    async def touch(self, key: str) -> bool:
        """Whether the grammar is there; it counts as just used then. Raises LOST_CONNECTION."""
        bus = self._bus
        found = await bus.client.eval(TOUCH, 2, bus.key(key), bus.key(INDEX_KEY), key, repr(time.time()), KEEP_S)
        return bool(found)

    async def put(self, key: str, value: bytes) -> int:
        """Keeps a grammar and drops those used longest ago; returns the bytes of all. Raises LOST_CONNECTION."""
        bus = self._bus
        keys = [bus.key(key), bus.key(INDEX_KEY), bus.key(SIZES_KEY)]
        arguments: list[str | int | bytes] = [key, repr(time.time()), KEEP_S, self._max_bytes, value, bus.key("")]
        return int(await bus.client.eval(PUT, len(keys), *keys, *arguments))
