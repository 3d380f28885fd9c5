"""`sapwood serve`: broker, scheduler, workers, tokenizers, gateways as child processes of one launcher."""

import asyncio
import contextlib
import json
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from services.launcher import default_model
from services.launcher.broker import broker_folder, broker_url, plan_broker
from services.launcher.flags import GATEWAY, ServeSettings
from services.launcher.obituary import report_end
from services.launcher.output import LogFilter
from services.launcher.plan import ProcessPlan, plan_services
from services.launcher.preflight import check_log_level, check_model_folder, claim_port, client_url
from services.launcher.process import Child
from services.launcher.readiness import Readiness, wait_until_ready
from services.launcher.screen import Screen
from services.launcher.supervisor import Supervisor
from services.launcher.watchdog import watch
from shared import sentinel
from shared.registry import Registry
from shared.streams import Bus, connect, wait_for_broker

BROKER_PATIENCE_S = 3.0
STOP_GRACE_S = 5.0
"""From SIGTERM to SIGKILL, where a worker may have to end a step. Gateways first let requests end."""


async def serve(settings: ServeSettings, flags: Mapping[str, object], screen: Screen) -> None:
    """Runs until a signal cancels it. Raises ConfigError when the set cannot be started."""
    started = time.monotonic()
    check_log_level(settings.log_level)
    port = claim_port(settings.host, settings.port)
    folder = check_model_folder(settings.model_path) if settings.model_path else await _default_model(screen)
    settings = msgspec.structs.replace(settings, port=port, model_path=str(folder))
    with contextlib.ExitStack() as stack:
        broker: ProcessPlan | None = None
        url = settings.redis_url
        if not url:
            scratch = stack.enter_context(broker_folder())
            url, broker = broker_url(scratch), plan_broker(scratch)
        else:
            await _check_broker(url)
        plans = plan_services(settings, flags, url, os.cpu_count() or 1)
        client = connect(url)
        bus = Bus(client, settings.key_prefix)

        async def tell(child: Child) -> None:
            if child.plan is not broker:
                await report_end(bus, child.plan.service, child.name)

        supervisor = Supervisor(screen.notice, tell)
        try:
            await _start(supervisor, broker, plans, settings, screen)
            readiness = await _until_ready(supervisor, plans, url, settings, screen)
            screen.end_progress()
            for line in ready_lines(settings, plans, readiness, time.monotonic() - started):
                screen.say(line)
            await _keep_running(supervisor, bus, settings.hang_timeout_s, screen)
        finally:
            screen.end_progress()
            await _stop(supervisor, screen)
            await client.aclose()


async def _keep_running(supervisor: Supervisor, bus: Bus, hang_timeout_s: float, screen: Screen) -> None:
    """Until cancelled. Raises ConfigError when a process does not stay up."""
    registry = Registry(bus, "launcher", "launcher")  # looks, and never enters itself
    children = {child.name: child for child in supervisor.children}
    tasks = [
        asyncio.create_task(watch(registry, children, hang_timeout_s, screen.notice), name="watchdog"),
        asyncio.create_task(supervisor.keep_running(), name="supervision"),
        asyncio.create_task(sentinel.watch(bus.client), name="sentinels"),
    ]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()


async def _default_model(screen: Screen) -> Path:
    if not default_model.is_there():
        screen.progress(f"making the default model {default_model.NAME} (once, about ten seconds)")
    return await default_model.prepare()


async def _check_broker(url: str) -> None:
    """Raises BusError when a broker that is somebody else's does not answer or cannot be used."""
    client = connect(url)
    try:
        await wait_for_broker(client, patience_s=BROKER_PATIENCE_S)
    finally:
        await client.aclose()


async def _start(
    supervisor: Supervisor,
    broker: ProcessPlan | None,
    plans: Sequence[ProcessPlan],
    settings: ServeSettings,
    screen: Screen,
) -> None:
    filters: dict[str, LogFilter] = {}

    def on_line(name: str, line: str) -> None:
        if filters.setdefault(name, LogFilter(settings.log_level)).shows(line):
            screen.log(name, line)

    if broker:
        await supervisor.start([Child(broker, on_line)], grace_s=STOP_GRACE_S)
    others = [Child(plan, on_line) for plan in plans if plan.service != GATEWAY]
    await supervisor.start(others, grace_s=STOP_GRACE_S)
    gateways = [Child(plan, on_line) for plan in plans if plan.service == GATEWAY]
    await supervisor.start(gateways, grace_s=settings.drain_notice_s + settings.drain_timeout_s + 1)


async def _until_ready(
    supervisor: Supervisor, plans: Sequence[ProcessPlan], redis_url: str, settings: ServeSettings, screen: Screen
) -> Readiness:
    """Raises ConfigError if a child ends before that."""
    client = connect(redis_url)
    try:
        watching = asyncio.create_task(supervisor.first_end())
        waiting = asyncio.create_task(
            _ready(Bus(client, settings.key_prefix), plans, client_url(settings.host, settings.port), screen)
        )
        try:
            await asyncio.wait([watching, waiting], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (watching, waiting):
                task.cancel()
            await asyncio.wait([watching, waiting])
        if watching.done() and not watching.cancelled():
            watching.result()
        return waiting.result()
    finally:
        await client.aclose()


async def _ready(bus: Bus, plans: Sequence[ProcessPlan], url: str, screen: Screen) -> Readiness:
    await wait_for_broker(bus.client)
    return await wait_until_ready(bus, plans, url, screen.progress)


async def _stop(supervisor: Supervisor, screen: Screen) -> None:
    """In order and to the end, whatever signals come; a second signal makes it short."""
    stopping = asyncio.create_task(supervisor.stop())
    while not stopping.done():
        try:
            await asyncio.shield(stopping)
        except asyncio.CancelledError:
            if stopping.cancelled():
                raise
            supervisor.kill()
    stopping.result()


def ready_lines(
    settings: ServeSettings, plans: Sequence[ProcessPlan], readiness: Readiness, seconds: float
) -> Iterator[str]:
    """What is ready, and where."""
    url = client_url(settings.host, settings.port)
    model = readiness.model or settings.served_model_name or Path(settings.model_path).name
    context = f", context {readiness.max_model_len} tokens" if readiness.max_model_len else ""
    question = {"role": "user", "content": "What is the capital of France?"}
    body = {"model": model, "messages": [question], "max_tokens": 64}
    yield f"Sapwood is ready after {seconds:.1f} s"
    yield f"  API        {url}/v1"
    yield f"  model      {model}{context} ({settings.model_path})"
    yield f"  processes  {_counted(plans)}, broker {_without_password(settings.redis_url) or 'embedded'}"
    if settings.metrics_port:
        last = settings.metrics_port + len(plans) - 1
        yield f"  metrics    {url}/metrics, and ports {settings.metrics_port} to {last} in the order of the processes"
    if settings.otlp_endpoint:
        yield f"  traces     {settings.otlp_endpoint}, {settings.trace_ratio:.0%} of requests"
    yield ""
    yield f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\"
    yield f"  -d '{json.dumps(body)}'"
    yield f"{_own_command()} chat --url {url}"
    yield "Ctrl-C stops."


def _without_password(url: str) -> str:
    """Neither the password before the host nor options, among which there may be others."""
    return re.sub(r"//[^/]*@", "//", url.partition("?")[0])


def _own_command() -> str:
    """How to call us from another terminal of this machine."""
    if shutil.which("sapwood"):
        return "sapwood"
    script = Path(sys.executable).with_name("sapwood")
    return shlex.quote(str(script)) if script.exists() else shlex.join([sys.executable, "-m", "services.launcher"])


def _counted(plans: Sequence[ProcessPlan]) -> str:
    counts: dict[str, int] = {}
    for plan in plans:
        counts[plan.service] = counts.get(plan.service, 0) + 1
    return ", ".join(f"{count} {service}" for service, count in counts.items())


async def run_until_signal(settings: ServeSettings, flags: Mapping[str, object], screen: Screen) -> None:
    """`serve`, ended by SIGINT, SIGTERM or SIGHUP, which is not an error."""
    logging.getLogger("shared").setLevel(logging.ERROR)  # the wait for the broker is shown as progress
    loop = asyncio.get_running_loop()
    work = asyncio.current_task()
    assert work is not None
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    was_asked = False

    def stop() -> None:
        nonlocal was_asked
        was_asked = True
        work.cancel()

    for number in signals:
        loop.add_signal_handler(number, stop)
    try:
        await serve(settings, flags, screen)
    except asyncio.CancelledError:
        if not was_asked:
            raise
        work.uncancel()
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
