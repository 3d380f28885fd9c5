"""Connections to the broker, and what may go wrong with them."""

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import hiredis
import redis.asyncio
from redis.asyncio.connection import DefaultParser
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ConnectionError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)

from shared import sentinel
from shared.errors import BusError, ConfigError

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

CONNECT_S = 5


class NotNow(ResponseError):
    """The broker is there and refuses for a reason that may pass: too few replicas, a full disk, its demotion."""


LOST_CONNECTION = (
    *(ConnectionError, TimeoutError, OSError),
    *(BusyLoadingError, ReadOnlyError, OutOfMemoryError, MasterDownError, NotNow),
)
"""What may pass: the broker is away, or takes no writes now."""

_CODES = {"NOREPLICAS": NotNow, "MISCONF": NotNow, "UNBLOCKED": NotNow}
_Parser: Any = type(
    "_Parser", (DefaultParser,), {"EXCEPTION_CLASSES": cast(Any, DefaultParser).EXCEPTION_CLASSES | _CODES}
)
"""redis-py's own knows these refusals as ResponseError only."""

_pack: Callable[[tuple[bytes | str | int, ...]], bytes] = cast(Any, hiredis).pack_command


def connect(url: str) -> "redis.asyncio.Redis":
    """A client for `url`. Blocking reads need no socket timeout (with one, redis-py on Python 3.11 can swallow
    a cancellation); a dead peer shows by TCP keepalive, or by its sentinels. Raises ConfigError for a malformed URL."""
    options: dict[str, Any] = {"socket_timeout": None, "decode_responses": False}
    if not url.startswith("unix:"):
        options |= {
            "socket_keepalive": True,
            "socket_keepalive_options": _keepalive(),
            "socket_connect_timeout": CONNECT_S,
        }
    try:
        if sentinel.is_sentinel_url(url):
            client = sentinel.connect(url, options)
        else:
            client = redis.asyncio.Redis.from_url(url, **options)
        pool: Any = client.connection_pool
        pool.connection_kwargs["parser_class"] = _Parser
        pool.make_connection()  # with an option that there is not, it cannot be made
    except (ValueError, TypeError) as error:
        raise ConfigError(f"--redis-url (SAPWOOD_REDIS_URL): {error}") from None
    for option in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        file = pool.connection_kwargs.get(option)
        if file and not Path(file).is_file():
            raise ConfigError(f"--redis-url (SAPWOOD_REDIS_URL): {option}: there is no file {file}")
    return client


def _keepalive() -> dict[int, int]:
    """Socket options by which a host that has vanished shows within half a minute, where the system has them."""
    wanted = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 25_000}
    return {getattr(socket, name): value for name, value in wanted.items() if hasattr(socket, name)}


async def backoff(attempt: int) -> None:
    """Waits 50 ms, doubling up to 2 s."""
    await asyncio.sleep(min(2.0, 0.05 * 2 ** min(attempt, 10)))


async def persistently(what: str, operation: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """What the operation returns; it is asked again, for ever, while the broker is away or refuses for now. It must
    bear to run twice. what: it does, for the log."""
    attempt = 0
    while True:
        try:
            return await operation(*args, **kwargs)
        except LOST_CONNECTION as error:
            log.warning("%s: %s; trying again", what, error)
            attempt += 1
            await backoff(attempt)


async def wait_for_broker(client: "redis.asyncio.Redis", patience_s: float = 60.0) -> None:
    """Returns once the broker answers. Raises BusError after `patience_s`, or at once if it refuses us or would
    evict our streams under memory pressure (maxmemory without noeviction)."""
    give_up = time.monotonic() + patience_s
    attempt = 0
    while True:
        try:
            memory = await client.info("memory")
            break
        except (AuthenticationError, AuthorizationError) as error:
            raise BusError(f"the broker refuses us: {error}") from None
        except LOST_CONNECTION as error:
            if time.monotonic() > give_up:
                raise BusError(f"the broker does not answer: {error}") from None
            attempt += 1
            await backoff(attempt)
        except RedisError as error:
            raise BusError(f"the broker refuses us: {error}") from None
    if memory.get("maxmemory") and memory.get("maxmemory_policy") != "noeviction":
        raise BusError(
            f"the broker has maxmemory with policy {memory.get('maxmemory_policy')}, which drops streams in use; "
            "set maxmemory-policy noeviction"
        )


class Wire:
    """A connection of one task's own, without the client's pool, retries, reply callbacks and its packing in Python:
    a third to a half of the CPU time per round trip, on the paths that run once a step."""

    def __init__(self, client: "redis.asyncio.Redis") -> None:
        pool: Any = client.connection_pool
        self._connection: Any = pool.make_connection()

    @property
    def is_broken(self) -> bool:
        """Whether the connection has broken since the last command."""
        connection = self._connection
        if not connection.is_connected:
            return False
        return bool(connection._reader.at_eof() or connection._writer.transport.is_closing())

    async def execute(self, commands: Sequence[Sequence[bytes | str | int]]) -> list[Any]:
        """The raw replies, an error reply as the exception. Raises LOST_CONNECTION, also for a connection that broke
        while nobody read; connects again when next asked."""
        connection = self._connection
        if self.is_broken:  # uvloop would answer a write with a RuntimeError
            await connection.disconnect()
            raise ConnectionError("the connection has broken")
        if not connection.is_connected:
            await connection.connect()
        await connection.send_packed_command(b"".join([_pack(tuple(one)) for one in commands]))
        replies: list[Any] = []
        for _ in commands:
            try:
                replies.append(await connection.read_response(disable_decoding=True))
            except ResponseError as error:
                replies.append(error)
        return replies

    async def close(self) -> None:
        await self._connection.disconnect()
