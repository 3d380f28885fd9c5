"""`python -m shared.health SERVICE`: exit 0 if this host's process of that service is alive and ready, else 1 and why.

What a container's health check runs. The process writes itself into the registry once a second and says there
whether it is ready; broker and prefix come from the environment, as for the services.
"""

import asyncio
import os
import socket
import sys
import time
from collections.abc import Iterable

from redis.exceptions import RedisError

from shared.errors import ConfigError
from shared.messages import Instance
from shared.registry import SERVICES, Registry, is_fresh, stands_by
from shared.settings import BaseSettings, from_values
from shared.streams import Bus, connect

ANSWER_S = 4.0
"""A broker that takes longer counts as gone."""


def fault(instances: Iterable[Instance], service: str, host: str, now: float) -> str | None:
    """Why no process of the service on `host` can work, None if one can."""
    instances = list(instances)
    ours = [one for one in instances if one.service == service and one.host == host]
    alive = [one for one in ours if is_fresh(one, now)]
    if any(one.is_ready or stands_by(one, instances, now) for one in alive):
        return None
    if alive:
        return f"{service} is starting"
    if ours:
        return f"{service} was last heard of {now - max(one.at for one in ours):.0f} s ago"
    return f"no {service} of host {host} in the registry"


async def check(service: str, settings: BaseSettings) -> str | None:
    """`fault` of this host. Raises RedisError, OSError or TimeoutError when the broker does not answer."""
    client = connect(settings.redis_url)
    try:
        registry = Registry(Bus(client, settings.key_prefix), "health", "health")
        instances = await asyncio.wait_for(registry.view(), ANSWER_S)
    finally:
        await client.aclose()
    return fault(instances, service, socket.gethostname(), time.time())


def main(argv: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1 or arguments[0] not in SERVICES:
        sys.exit(f"usage: python -m shared.health {{{','.join(SERVICES)}}}")
    try:
        why = asyncio.run(check(arguments[0], from_values(BaseSettings, {}, os.environ)))
    except (ConfigError, RedisError, OSError, TimeoutError) as error:
        why = f"{type(error).__name__}: {error}"
    if why is not None:
        sys.exit(why)


if __name__ == "__main__":
    main()
