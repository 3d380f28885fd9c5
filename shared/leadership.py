"""The scheduler's lock in the broker, as others see it: who leads, and the end of one who is known to have died.

`services.scheduler.leader` takes and renews it.
"""

from typing import Any

from shared.streams import Bus

LOCK = "scheduler-leader"
"""Key; its value is the holder's instance name, a slash and a mark of that start."""

TERM = "scheduler-term"
"""Key; the newest leader's term."""

_DISMISS = """
local holder = redis.call('get', KEYS[1])
if holder and holder:sub(1, #ARGV[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end
return 0
"""


async def leader_of(bus: Bus) -> str | None:
    """The instance that leads, if one does. Raises LOST_CONNECTION."""
    holder: Any = await bus.client.get(bus.key(LOCK))
    return None if holder is None else holder.decode().rpartition("/")[0]


async def dismiss(bus: Bus, instance: str) -> bool:
    """Takes the lock from an instance that has ended, so that one which waits need not until the lock lapses. Whether
    it held it. Raises LOST_CONNECTION."""
    taken: Any = await bus.client.eval(_DISMISS, 1, bus.key(LOCK), f"{instance}/")
    return bool(taken)
