"""Gateway service: HTTP in, messages out; replies in, HTTP out.

On a signal it takes no new connections, lets running requests end for a while, ends the rest with a 503 and
leaves its reply stream to expire.
"""

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from aiohttp import web

from services.gateway import http_log
from services.gateway.body import BodyBudget
from services.gateway.config import Settings
from services.gateway.cors import Origins
from services.gateway.deployment import RETRY_AFTER_S, Deployment
from services.gateway.inbox import Inbox
from services.gateway.keeper import Keeper
from services.gateway.keys import load_keys
from services.gateway.load import Load
from services.gateway.rates import Rates
from services.gateway.routes import make_app
from services.gateway.state import Gateway
from shared.errors import ConfigError, Unavailable
from shared.heap import settle_heap
from shared.messages import Instance
from shared.registry import Registry
from shared.service import Context, run_service

log = logging.getLogger(__name__)

RELOAD_S = 2.0
"""How often the keys file is looked at."""

LAST_CALL_S = 0.5
"""How long the connections that are there may bring new requests once there are no new connections: a client whose
connection was taken is not to be told to go elsewhere."""

LAST_WORDS_S = 2.0
"""How long clients may take to read that their request has ended."""


async def serve(context: Context, settings: Settings) -> None:
    """Serves HTTP until cancelled. Raises ConfigError for an address, a keys file or origins that cannot be used."""
    origins = Origins(settings.allowed_origins)
    inbox = Inbox(context.bus, f"{context.instance}.{secrets.token_hex(4)}")
    gateway = Gateway(
        settings,
        context.instance,
        context.bus,
        inbox,
        Deployment(),
        BodyBudget(settings.max_body_bytes, settings.max_body_bytes_in_flight),
        load_keys(settings.api_key, settings.admin_api_key, settings.api_keys_file),
        Keeper(
            context.bus,
            inbox,
            grace_s=settings.resume_grace_s,
            keep_s=settings.resume_keep_s,
            max_bytes=settings.resume_max_mb * 2**20,
            patience_s=settings.outage_patience_s,
        ),
        Rates(context.bus),
        Load(settings.max_requests_in_flight, settings.max_prompt_tokens_in_flight),
    )
    is_needed = False
    runner = web.AppRunner(
        make_app(gateway, origins),
        handler_cancellation=True,
        access_log=None,
        logger=http_log.log,
        shutdown_timeout=0.5,
    )
    await runner.setup()
    try:
        site = await _listen(runner, settings)
        inbox.create()
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(gateway.inbox.run(), name="inbox")
            tasks.create_task(gateway.inbox.keep(), name="reply stream")
            tasks.create_task(_end_hopeless(gateway), name="patience")
            tasks.create_task(gateway.keeper.run(), name="kept answers")
            if settings.api_keys_file:
                tasks.create_task(_reload_keys(gateway), name="keys file")
            settle_heap()
            context.registry.update(is_ready=False, address=inbox.address)
            tasks.create_task(context.registry.run(_watch(context.registry, gateway)), name="registry")
            log.info("listening on %s", site.name)
            try:
                await asyncio.Event().wait()
            finally:
                context.registry.update(is_ready=False, address=inbox.address)
                if not reading.done():
                    is_needed = await _drain(gateway, runner, site)
    finally:
        await runner.cleanup()
        await inbox.leave(is_needed=is_needed)


def _watch(registry: Registry, gateway: Gateway) -> Callable[[Sequence[Instance]], None]:
    """What to do with each view of the registry: it says what is there, and so whether this gateway can be of use."""

    def on_view(instances: Sequence[Instance]) -> None:
        gateway.deployment.update(instances)
        if registry.is_ready != gateway.deployment.is_ready:
            registry.update(is_ready=gateway.deployment.is_ready, address=gateway.inbox.address)

    return on_view


async def _listen(runner: web.AppRunner, settings: Settings) -> web.TCPSite:
    site = web.TCPSite(runner, settings.host, settings.port, reuse_port=settings.reuse_port or None)
    try:
        await site.start()
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {settings.host} --port {settings.port}: cannot listen: {_why(error)}") from None
    return site


def _why(error: OSError | UnicodeError) -> str:
    if isinstance(error, OSError) and not isinstance(error, socket.gaierror) and error.errno:
        return os.strerror(error.errno)
    return getattr(error, "strerror", None) or str(error)


async def _end_hopeless(gateway: Gateway) -> None:
    """Ends the requests in flight once a part of the system has been gone for longer than they are to wait."""
    while True:
        await asyncio.sleep(1)
        deployment = gateway.deployment
        if gateway.load.requests and deployment.absent_for_s > gateway.settings.outage_patience_s:
            log.error("no %s; %d requests end", ", no ".join(deployment.absent), gateway.load.requests)
            error = Unavailable(f"Not ready: no {', no '.join(deployment.absent)}.", retry_after_s=RETRY_AFTER_S).body()
            gateway.inbox.fail_all(error)


async def _reload_keys(gateway: Gateway) -> None:
    """Reads the keys file again whenever it has changed, for ever. One that cannot be used changes nothing."""
    settings = gateway.settings
    path, seen = Path(settings.api_keys_file), None
    while True:
        try:
            stat = await asyncio.to_thread(path.stat)
            now = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if seen is not None and now != seen:
                gateway.keys = await asyncio.to_thread(
                    load_keys, settings.api_key, settings.admin_api_key, settings.api_keys_file
                )
                log.warning("the keys file has changed and was read again")
            seen = now
        except (OSError, ConfigError) as error:
            log.error("the keys file cannot be read again, the old keys stay: %s", error)
            seen = None if seen is None else (0, 0, 0)
        await asyncio.sleep(RELOAD_S)


async def _drain(gateway: Gateway, runner: web.AppRunner, site: web.TCPSite) -> bool:
    """First no balancer is to send new requests, then there are no new connections, then no new requests. Those in
    flight go on for a while, then end with a 503, or are left to other gateways if their clients can come back. Returns
    whether any are."""
    settings, deployment = gateway.settings, gateway.deployment
    deployment.is_leaving = True
    await asyncio.sleep(settings.drain_notice_s)
    await site.stop()
    until = time.monotonic() + settings.drain_timeout_s
    last_call = min(until, time.monotonic() + LAST_CALL_S)
    while _has_connections(runner) and time.monotonic() < last_call:  # noqa: ASYNC110  # there is no event to wait for
        await asyncio.sleep(0.02)
    deployment.is_stopping = True
    await gateway.until_idle(until - time.monotonic())
    is_needed = gateway.keeper.hand_over()
    if gateway.load.requests:
        log.warning("stopping with %d requests in flight", gateway.load.requests)
        gateway.inbox.fail_all(Unavailable("This gateway is stopping; try again.", retry_after_s=RETRY_AFTER_S).body())
        await gateway.until_idle(LAST_WORDS_S)
    return is_needed


def _has_connections(runner: web.AppRunner) -> bool:
    return runner.server is not None and bool(runner.server.connections)


def main() -> None:
    run_service("gateway", Settings, serve)
