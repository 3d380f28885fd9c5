"""Gateway service: HTTP in, messages out; replies in, HTTP out.

On a signal it takes no new connections, lets running requests end for a while, ends the rest with a 503 and
leaves its reply stream to expire.
"""

import asyncio
import logging
import os
import socket

from aiohttp import web

from services.gateway.body import BodyBudget
from services.gateway.config import Settings
from services.gateway.deployment import RETRY_AFTER_S, Deployment
from services.gateway.inbox import Inbox
from services.gateway.routes import make_app
from services.gateway.state import Gateway
from shared.errors import ConfigError, Unavailable
from shared.service import Context, run_service

log = logging.getLogger(__name__)

LAST_WORDS_S = 2.0
"""How long clients may take to read that their request has ended."""


async def serve(context: Context, settings: Settings) -> None:
    """Serves HTTP until cancelled. Raises ConfigError when the address cannot be used."""
    gateway = Gateway(
        settings,
        context.instance,
        context.bus,
        Inbox(context.bus, context.instance),
        Deployment(),
        BodyBudget(settings.max_body_bytes, settings.max_body_bytes_in_flight),
    )
    runner = web.AppRunner(make_app(gateway), handler_cancellation=True, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        site = await _listen(runner, settings)
        gateway.inbox.create()
        await context.bus.outbox.flush()  # what an earlier process of this name left is gone before it is read
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(gateway.inbox.run(), name="inbox")
            tasks.create_task(gateway.inbox.keep(), name="reply stream")
            tasks.create_task(_end_hopeless(gateway), name="patience")
            context.registry.update(is_ready=True)
            tasks.create_task(context.registry.run(gateway.deployment.update), name="registry")
            log.info("listening on %s", site.name)
            try:
                await asyncio.Event().wait()
            finally:
                context.registry.update(is_ready=False)
                if not reading.done():
                    await _drain(gateway, site)
    finally:
        await runner.cleanup()
        await gateway.inbox.leave()


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
        if gateway.inbox.num_calls and deployment.absent_for_s > gateway.settings.outage_patience_s:
            log.error("no %s; %d requests end", ", no ".join(deployment.absent), gateway.inbox.num_calls)
            gateway.inbox.fail_all(
                Unavailable(f"Not ready: no {', no '.join(deployment.absent)}.", retry_after_s=RETRY_AFTER_S).body()
            )


async def _drain(gateway: Gateway, site: web.TCPSite) -> None:
    """No new requests; those in flight go on for a while, then end with a 503."""
    gateway.deployment.is_stopping = True
    await site.stop()
    await gateway.until_idle(gateway.settings.drain_timeout_s)
    if gateway.num_requests:
        log.warning("stopping with %d requests in flight", gateway.num_requests)
        gateway.inbox.fail_all(Unavailable("This gateway is stopping; try again.", retry_after_s=RETRY_AFTER_S).body())
        await gateway.until_idle(LAST_WORDS_S)


def main() -> None:
    run_service("gateway", Settings, serve)
