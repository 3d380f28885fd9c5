"""Brokers that fail over: the master is asked of sentinels, and left when they name another one.

    redis+sentinel://[user:password@]host[:26379],host[:26379],.../service[/db][?option=value]

`rediss+sentinel://` speaks TLS to the broker and to the sentinels. Options are redis-py's, as in other URLs, and
`sentinel_username` and `sentinel_password`, which the sentinels are told.
"""

import asyncio
import logging
import re
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import redis.asyncio
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, RedisError

log = logging.getLogger(__name__)

SCHEMES = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
DEFAULT_PORT = 26379
ANSWER_S = 1.0
"""A sentinel that takes longer is passed over."""

LOOK_S = 1.0
_HOST = re.compile(r"(\[[0-9a-fA-F:]+\]|[^:\[\]]+)(?::(\d{1,5}))?")


@dataclass(frozen=True)
class SentinelUrl:
    """options: redis-py's, for connections to the broker; sentinel_options: for those to sentinels."""

    sentinels: list[tuple[str, int]]
    service: str
    options: dict[str, Any]
    sentinel_options: dict[str, Any]


def is_sentinel_url(url: str) -> bool:
    return url.partition("://")[0] in SCHEMES


def parse(url: str) -> SentinelUrl:
    """Raises ValueError."""
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    user, at, hosts = authority.rpartition("@")
    service, _, db = path.partition("/")
    if not service:
        raise ValueError("a sentinel URL ends with the name of the service: redis+sentinel://HOST:26379/SERVICE")
    if db and not db.isdigit():
        raise ValueError(f"the database must be a number, got {db!r}")
    options: dict[str, Any] = dict(parse_url(f"{SCHEMES[scheme]}://{user}{at}-/{db}?{query}"))
    del options["host"]
    options["ssl"] = options.pop("connection_class", None) is not None
    told = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    tls = {name: value for name, value in options.items() if name.startswith("ssl")}
    return SentinelUrl([_host(one) for one in hosts.split(",")], service, options, {**told, **tls})


def _host(text: str) -> tuple[str, int]:
    form = _HOST.fullmatch(text)
    if form is None:
        raise ValueError(f"{text!r} is no HOST:PORT of a sentinel")
    return form[1].strip("[]"), int(form[2] or DEFAULT_PORT)


def connect(url: str, options: Mapping[str, Any]) -> "redis.asyncio.Redis":
    """A client of the master. options: for every connection. Raises ValueError."""
    parsed = parse(url)
    asked = {**options, **parsed.sentinel_options, "retry": Retry(NoBackoff(), 0)}
    sentinels = _Sentinels(parsed.sentinels, sentinel_kwargs=asked)  # type: ignore[no-untyped-call]
    client: redis.asyncio.Redis = sentinels.master_for(
        parsed.service, connection_pool_class=MasterPool, **{**options, **parsed.options}
    )
    return client


class _Sentinels(Sentinel):
    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """The master's address, of the first sentinel that answers and knows it; that one is asked first next time.
        Raises MasterNotFoundError."""
        said = []
        for place, one in enumerate(self.sentinels):
            try:
                async with asyncio.timeout(ANSWER_S):
                    address = await cast(Any, one).sentinel_get_master_addr_by_name(service_name)
            except (RedisError, OSError) as error:
                said.append(f"{one.connection_pool.connection_kwargs['host']}: {error or type(error).__name__}")
                continue
            if address is not None:
                self.sentinels.insert(0, self.sentinels.pop(place))
                host, port = address
                return (host.decode() if isinstance(host, bytes) else host), int(port)
            said.append(f"{one.connection_pool.connection_kwargs['host']}: no such service")
        raise MasterNotFoundError(f"no sentinel names a master for {service_name!r} ({'; '.join(said)})")


class MasterPool(SentinelConnectionPool):
    """Knows every connection that was made, those that were taken out of it included."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]
        self._made: weakref.WeakSet[Any] = weakref.WeakSet()

    def make_connection(self) -> Any:
        connection = super().make_connection()  # type: ignore[no-untyped-call]
        self._made.add(connection)
        return connection

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """As the pool's; with those in use the connections to sentinels are closed as well."""
        await super().disconnect(inuse_connections)
        if inuse_connections:
            for one in self.sentinel_manager.sentinels:
                await one.aclose()

    async def leave_old_master(self) -> None:
        """Breaks connections to any other broker than the master. Raises MasterNotFoundError."""
        address = await self.get_master_address()  # type: ignore[no-untyped-call]
        for connection in list(self._made):
            writer = connection._writer
            if writer is not None and (connection.host, connection.port) != address:
                log.warning("the broker at %s:%s is not the master any more", connection.host, connection.port)
                writer.transport.abort()  # whoever waits for an answer there sees it close, and asks the new one


async def watch(client: "redis.asyncio.Redis") -> None:
    """Looks for ever who the master is. A master that is frozen or cut off ends no connection by itself, and a command
    that waits there would wait for ever. Without sentinels there is nothing to see."""
    pool = client.connection_pool
    if not isinstance(pool, MasterPool):
        await asyncio.Event().wait()
    assert isinstance(pool, MasterPool)
    while True:
        await asyncio.sleep(LOOK_S)
        try:
            await pool.leave_old_master()
        except ConnectionError as error:
            log.warning("looking for the broker: %s", error)
