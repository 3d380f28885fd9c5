"""How every process starts and stops: logging, telemetry, broker, registry, signals.

    def main() -> None:
        run_service("tokenizer", Settings, serve)

    async def serve(context: Context, settings: Settings) -> None: ...   # returns only when cancelled

SIGTERM and SIGINT cancel `serve`; its `async with` and `finally` blocks are the shutdown code. A `ConfigError`
or `BusError` ends the process with one line on standard error and exit code 2.
"""

import asyncio
import logging
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import prometheus_client
import uvloop

from shared import sentinel, telemetry
from shared import settings as settings_module
from shared.errors import BusError, ConfigError
from shared.metrics import ASYNCIO_TASKS
from shared.registry import Registry
from shared.settings import BaseSettings
from shared.streams import Bus, connect, persistently, wait_for_broker

log = logging.getLogger(__name__)

S = TypeVar("S", bound=BaseSettings)
EXIT_CONFIG = 2


@dataclass(frozen=True, slots=True)
class Context:
    """What `run_service` hands to a service. instance: this process's name in its kind."""

    service: str
    instance: str
    bus: Bus
    registry: Registry


def run_service(
    service: str, settings_type: type[S], serve: Callable[[Context, S], Awaitable[None]], argv: list[str] | None = None
) -> None:
    """Runs the service until a signal or an error ends it. Exits non-zero on errors."""
    try:
        settings = settings_module.load(settings_type, argv, prog=f"python -m services.{service}")
        _set_up_logging(service, settings.log_level)
        uvloop.run(_run(service, settings, serve))
    except (ConfigError, BusError) as error:
        _exit_with(service, error)
    except BaseExceptionGroup as group:  # a task group's, with the reason inside
        known, unknown = group.split((ConfigError, BusError))
        if known is None or unknown is not None:
            raise
        _exit_with(service, _first_of(known))


def _exit_with(service: str, error: BaseException) -> None:
    print(f"{service}: {error}", file=sys.stderr)
    sys.exit(EXIT_CONFIG)


def _first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first


async def _run(service: str, settings: S, serve: Callable[[Context, S], Awaitable[None]]) -> None:
    instance = settings.instance or f"{service}-{secrets.token_hex(4)}"
    if settings.metrics_port:
        try:
            prometheus_client.start_http_server(settings.metrics_port)
        except OSError as error:
            raise ConfigError(f"--metrics-port {settings.metrics_port}: {error.strerror}") from None
    client = connect(settings.redis_url)
    bus = Bus(client, settings.key_prefix)
    registry = Registry(bus, service, instance)
    tracing = telemetry.set_up(service, instance, settings.otlp_endpoint)
    loop = asyncio.get_running_loop()
    ASYNCIO_TASKS.set_function(lambda: len(asyncio.all_tasks(loop)))
    try:
        await wait_for_broker(client)
        await persistently("first heartbeat", registry.beat)
        work = asyncio.ensure_future(_with_background(Context(service, instance, bus, registry), settings, serve))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, work.cancel)
        try:
            await work
        except asyncio.CancelledError:
            log.info("stopped")
    finally:
        await registry.leave()
        await client.aclose()
        tracing.shut_down()


async def _with_background(context: Context, settings: S, serve: Callable[[Context, S], Awaitable[None]]) -> None:
    """Runs `serve` beside the outbox and a watch over the broker; on the way out, what was posted is still written (for
    a second)."""
    outbox = asyncio.create_task(context.bus.outbox.run(), name="outbox")
    work = asyncio.create_task(_as_coroutine(serve(context, settings)), name="serve")
    watching = asyncio.create_task(sentinel.watch(context.bus.client), name="sentinels")
    try:
        await asyncio.wait([outbox, work, watching], return_when=asyncio.FIRST_COMPLETED)
    finally:
        work.cancel()
        await asyncio.wait([work])
        if not outbox.done():
            await asyncio.wait([asyncio.create_task(context.bus.outbox.flush())], timeout=1)
        outbox.cancel()
        watching.cancel()
        await asyncio.wait([outbox, watching])
        for task in (work, outbox, watching):
            if not task.cancelled():
                task.result()  # raises what ended it, on the way out too


async def _as_coroutine(awaitable: Awaitable[None]) -> None:
    await awaitable


def _set_up_logging(service: str, level: str) -> None:
    if level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ConfigError(f"--log-level (SAPWOOD_LOG_LEVEL): DEBUG, INFO, WARNING or ERROR, got {level!r}")
    logging.basicConfig(
        level=level.upper(), format=f"%(asctime)s {service} %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
