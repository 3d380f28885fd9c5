"""Starting, stopping, and outliving the parts around."""

import asyncio
import hashlib
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.gateway.config import Settings
from services.gateway.main import LAST_CALL_S, serve
from shared.errors import ConfigError
from shared.messages import sequence_id
from shared.registry import Registry
from shared.service import Context
from shared.streams import Bus

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
URL = "/v1/chat/completions"


async def start_on(bus: Bus, settings: Settings) -> None:
    await serve(Context("gateway", "g", bus, Registry(bus, "gateway", "g")), settings)


async def test_a_port_in_use_is_one_clear_line(bus: Bus) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port}: cannot listen: .*in use") as error:
            await start_on(bus, Settings(port=port))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "300.1.1.1", "203.0.113.1", "a" * 70])
async def test_a_bad_host_is_one_clear_line(bus: Bus, host: str) -> None:
    with pytest.raises(ConfigError, match=r"--host .*: cannot listen"):
        await start_on(bus, Settings(host=host, port=30999))


async def test_two_gateways_share_a_port(start: Any, backend: Any) -> None:
    backend.texts = ["x"]
    first = await start(reuse_port=True)
    await start(reuse_port=True, port=first.settings.port, instance="g2")
    for _ in range(20):
        status, _, _ = await first.post(URL, CHAT, headers={"Connection": "close"})
        assert status == 200
    assert {request.reply_to.partition(".")[0] for request in backend.seen} == {"g1", "g2"}


async def test_a_clean_stop_lets_requests_end_and_the_stream_expire(start: Any, backend: Any) -> None:
    gateway = await start(drain_timeout_s=10)
    call = asyncio.create_task(gateway.post(URL, CHAT))
    request = await backend.next()
    backend.delta(request, "some")
    await backend.bus.outbox.flush()
    assert await backend.bus.client.exists(backend.bus.key(f"reply:{request.reply_to}"))
    stopping = asyncio.create_task(gateway.stop())
    await asyncio.sleep(0.1)
    with pytest.raises(OSError, match="Connect"):
        await asyncio.open_connection("127.0.0.1", gateway.settings.port)
    backend.delta(request, " more", offset=4, num_tokens=2)
    backend.finish(request, num_tokens=2)
    status, answer, _ = await call
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "some more")
    await asyncio.wait_for(stopping, 5)
    backend.delta(request, "late")
    await backend.bus.outbox.flush()
    (left,) = await backend.bus.client.keys(backend.bus.key("reply:*"))
    assert await backend.bus.client.xlen(left) == 1
    assert 0 < await backend.bus.client.ttl(left) <= 30


async def test_a_stop_ends_what_takes_too_long_with_a_503(start: Any, backend: Any) -> None:
    gateway = await start(drain_timeout_s=0.1)
    call = asyncio.create_task(gateway.post(URL, CHAT))
    request = await backend.next()
    await asyncio.wait_for(gateway.stop(), 5)
    status, _, response = await call
    assert (status, response.headers["Retry-After"]) == (503, "1")
    assert (await backend.next_abort()).sequence_ids == [sequence_id(request.request_id, 0)]


async def test_requests_end_when_a_part_is_gone_for_good(start: Any, backend: Any, bus: Bus) -> None:
    gateway = await start(outage_patience_s=0.5)
    call = asyncio.create_task(gateway.post(URL, CHAT))
    await backend.next()
    await bus.client.hdel(bus.key("instances"), "gpu_worker/gpu_worker-1")  # type: ignore[misc]
    status, answer, _ = await asyncio.wait_for(call, 10)
    assert status == 503
    assert "gpu_worker" in answer["error"]["message"]


async def test_requests_end_when_the_broker_lost_its_data(start: Any, backend: Any, bus: Bus) -> None:
    gateway = await start()
    call = asyncio.create_task(gateway.post(URL, CHAT))
    await backend.next()
    for key in await bus.client.keys(bus.key("*")):
        if not key.endswith(b":instances"):
            await bus.client.delete(key)
    status, answer, _ = await asyncio.wait_for(call, 10)
    assert status == 503
    assert "broker" in answer["error"]["message"]
    backend.texts = ["x"]
    assert (await gateway.post(URL, CHAT))[0] == 200


async def test_a_cut_connection_to_the_broker_costs_nothing(gateway: Any, backend: Any, bus: Bus) -> None:
    call = asyncio.create_task(gateway.post(URL, CHAT))
    request = await backend.next()
    backend.delta(request, "some")
    await bus.outbox.flush()
    await bus.client.client_kill_filter(_type="normal", skipme=True)
    backend.delta(request, " more", offset=4, num_tokens=2)
    backend.finish(request, num_tokens=2)
    status, answer, _ = await asyncio.wait_for(call, 10)
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "some more")


async def test_another_start_of_the_same_name_reads_another_stream(bus: Bus, start: Any, backend: Any) -> None:
    """What is on its way to an earlier start belongs to those who come back for it."""
    backend.texts = ["x"]
    first = await start()
    assert (await first.post(URL, CHAT))[0] == 200
    await first.stop()
    second = await start()
    assert (await second.post(URL, CHAT))[0] == 200
    one, other = (request.reply_to for request in backend.seen)
    assert one != other
    registered = msgspec.json.decode(await bus.client.hget(bus.key("instances"), "gateway/g1"))  # type: ignore[misc]
    assert registered["address"] == other


async def test_a_gateway_that_stops_takes_nothing_new(start: Any, backend: Any) -> None:
    gateway = await start(drain_timeout_s=10)
    call = asyncio.create_task(gateway.post(URL, CHAT))
    request = await backend.next()
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.settings.port)
    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b'{"status":"ok"}')
    stopping = asyncio.create_task(gateway.stop())
    await asyncio.sleep(LAST_CALL_S + 0.2)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    )
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).decode()
    assert " 503 " in head
    assert "\r\nRetry-After: 1\r\n" in head
    writer.close()
    backend.answer(request, ["x"])
    assert (await call)[0] == 200
    await asyncio.wait_for(stopping, 5)


async def test_a_broker_without_memory_is_a_503_and_no_end(start: Any, backend: Any, bus: Bus, tmp_path: Path) -> None:
    """What cannot wait in the outbox is refused; the gateway goes on, and so does everything once there is room."""
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[[key]]\nname = "a"\nsha256 = "{hashlib.sha256(b"k").hexdigest()}"\nrequests_per_minute = 100\n')
    gateway = await start(outage_patience_s=0.5)
    limited = await start(instance="g2", outage_patience_s=0.5, api_keys_file=str(keys))
    waiting = asyncio.create_task(gateway.post(URL, CHAT))
    request = await backend.next()
    await bus.client.config_set("maxmemory", 1)
    try:
        status, _, response = await gateway.post(URL, CHAT, headers={"Idempotency-Key": "k"})
        assert (status, response.headers["Retry-After"]) == (503, "1")
        assert (await limited.post(URL, CHAT, headers={"Authorization": "Bearer k"}))[0] == 503
        await asyncio.sleep(2.5)  # heartbeats and all
    finally:
        await bus.client.config_set("maxmemory", 0)
    backend.answer(request, ["x"])
    assert (await waiting)[0] == 200
    backend.texts = ["x"]
    assert (await gateway.post(URL, CHAT, headers={"Idempotency-Key": "k"}))[0] == 200
    assert (await limited.post(URL, CHAT, headers={"Authorization": "Bearer k"}))[0] == 200


async def test_a_connection_that_was_taken_is_served_when_the_gateway_stops(start: Any, backend: Any) -> None:
    backend.texts = ["x"]
    gateway = await start(drain_timeout_s=10)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.settings.port)
    stopping = asyncio.create_task(gateway.stop())
    await asyncio.sleep(0.1)
    body = b'{"model":"tiny","prompt":"a"}'
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        % (len(body), body)
    )
    answer = await asyncio.wait_for(reader.read(), 5)  # to its end: the connection is not kept
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nConnection: close\r\n" in answer
    writer.close()
    await asyncio.wait_for(stopping, 5)


async def test_balancers_hear_of_the_stop_before_connections_are_refused(start: Any, backend: Any) -> None:
    backend.texts = ["x"]
    gateway = await start(drain_notice_s=0.5)
    stopping = asyncio.create_task(gateway.stop())
    await asyncio.sleep(0.1)
    async with gateway.http.get("/ready") as response:
        assert (response.status, (await response.json())["reasons"]) == (503, ["this gateway is stopping"])
    assert (await gateway.post(URL, CHAT))[0] == 200
    await asyncio.wait_for(stopping, 5)
    with pytest.raises(OSError, match="Connect"):
        await asyncio.open_connection("127.0.0.1", gateway.settings.port)
