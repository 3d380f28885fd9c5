"""API keys: who is let in, how much each may ask, and that nothing of them is ever shown."""

import asyncio
import hashlib
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from services.gateway import keys, main
from services.gateway.keys import ApiKey, load_keys, read_file
from services.gateway.rates import RateLimited, Rates
from shared.errors import ConfigError
from shared.messages import Profile
from shared.streams import Bus, control_stream

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
URL = "/v1/chat/completions"


def entry(name: str, text: str, **fields: Any) -> str:
    lines = [f'name = "{name}"', f'sha256 = "{hashlib.sha256(text.encode()).hexdigest()}"']
    lines += [f"{field} = {str(value).lower()}" for field, value in fields.items()]
    return "[[key]]\n" + "\n".join(lines) + "\n"


def auth(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def a_key(**limits: int) -> ApiKey:
    return ApiKey(name="a", sha256="0" * 64, **limits)


def file_of(folder: Path, *entries: str) -> str:
    path = folder / "keys.toml"
    path.write_text("".join(entries))
    return str(path)


def test_keys_are_found_by_their_text(tmp_path: Path) -> None:
    found = load_keys("one", "boss", file_of(tmp_path, entry("alice", "a-key"), entry("root", "r-key", admin=True)))
    names = {text: key.name for text in ("one", "boss", "a-key", "r-key") if (key := found.find(text))}
    assert names == {"one": "default", "boss": "admin", "a-key": "alice", "r-key": "root"}
    assert [text for text in ("", "ONE", "one ", "x", "\udcff") if found.find(text)] == []
    assert found.has_admin
    assert not load_keys("", "boss", "")
    assert not load_keys("", "", "").has_admin


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[key]]\nname = 'a'\n", "sha256"),
        ("[[key]]\nname = 'a'\nsha256 = 'xyz'\n", "sha256"),
        ("[[key]]\nname = 'a b'\nsha256 = '" + "0" * 64 + "'\n", "name"),
        (entry("a", "k", requests_per_minute=-1), "requests_per_minute"),
        (entry("a", "k", request_per_minute=1), "request_per_minute"),
        (entry("a", "k") + entry("a", "l"), "a is the name of two"),
        (entry("a", "secret") + entry("b", "secret"), "one value is the sha256 of two"),
        ("", "no \\[\\[key\\]\\]"),
        ("keys = [", "keys.toml"),
        ("\x00", "keys.toml"),
    ],
)
def test_a_bad_file_is_one_line_that_names_the_fault(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as error:
        read_file(file_of(tmp_path, text))
    assert "\n" not in str(error.value)
    assert hashlib.sha256(b"secret").hexdigest() not in str(error.value)


def test_two_settings_that_are_one_key_are_refused() -> None:
    """As a client's key it would be an admin's, and none would seem to be needed."""
    for admin in ("one", " one\n"):
        with pytest.raises(ConfigError, match="--admin-api-key is the same key as --api-key"):
            load_keys("one", admin, "")
    assert load_keys("one", "two", "")


@pytest.mark.parametrize(
    ("of_file", "complaint"),
    [
        (entry("alice", "one"), "keys.toml: the key alice is also the one that --api-key sets"),
        (entry("alice", "boss"), "keys.toml: the key alice is also the one that --admin-api-key sets"),
        (entry("Default", "a-key"), "keys.toml: the name Default is that of the key that --api-key sets"),
        (entry("admin", "a-key"), "keys.toml: the name admin is that of the key that --admin-api-key sets"),
    ],
)
def test_a_key_of_the_file_takes_no_settings_place(tmp_path: Path, of_file: str, complaint: str) -> None:
    path = file_of(
        tmp_path, of_file.replace(hashlib.sha256(b"one").hexdigest(), hashlib.sha256(b"one").hexdigest().upper())
    )
    with pytest.raises(ConfigError, match=complaint) as error:
        load_keys("one", "boss", path)
    assert "\n" not in str(error.value)
    assert load_keys("", "", path)


def test_space_around_a_setting_is_not_part_of_the_key() -> None:
    found = load_keys("one\n", "\tboss \r\n", "")
    assert [key.name for text in ("one", "boss") if (key := found.find(text))] == ["default", "admin"]
    for settings, flag in ((("\n", ""), "--api-key"), (("", " "), "--admin-api-key")):
        with pytest.raises(ConfigError, match=f"{flag} is nothing but white space"):
            load_keys(*settings, "")


def test_a_file_that_is_not_there_ends_the_process(tmp_path: Path, broker_url: str) -> None:
    command = [sys.executable, "-m", "services.gateway", f"--api-keys-file={tmp_path}/none", "--key-prefix=keys-test"]
    ended = subprocess.run([*command, f"--redis-url={broker_url}"], capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert f"--api-keys-file {tmp_path}/none: No such file" in ended.stderr


async def test_a_keys_requests_in_flight(start: Any, backend: Any, tmp_path: Path) -> None:
    path = file_of(tmp_path, entry("a", "a-key", max_requests_in_flight=1), entry("b", "b-key"))
    gateway = await start(api_keys_file=path)
    first = asyncio.create_task(gateway.post(URL, CHAT, headers=auth("a-key")))
    request = await backend.next()
    status, answer, response = await gateway.post(URL, CHAT, headers=auth("a-key"))
    assert (status, answer["error"]["code"], response.headers["Retry-After"]) == (429, "rate_limit_exceeded", "1")
    other = asyncio.create_task(gateway.post(URL, CHAT, headers=auth("b-key")))
    backend.answer(await backend.next(), ["x"])
    assert (await other)[0] == 200
    backend.answer(request, ["x"])
    assert (await first)[0] == 200
    backend.texts = ["x"]
    assert (await gateway.post(URL, CHAT, headers=auth("a-key")))[0] == 200


async def test_requests_per_minute_count_at_all_gateways_together(start: Any, backend: Any, tmp_path: Path) -> None:
    backend.texts = ["x"]
    path = file_of(tmp_path, entry("a", "a-key", requests_per_minute=4), entry("b", "b-key"))
    gateways = [await start(api_keys_file=path, instance=name) for name in ("g1", "g2")]
    left = []
    for turn in range(4):
        status, _, response = await gateways[turn % 2].post(URL, CHAT, headers=auth("a-key"))
        assert status == 200
        left.append(response.headers["x-ratelimit-remaining-requests"])
        assert response.headers["x-ratelimit-limit-requests"] == "4"
        assert "x-ratelimit-limit-tokens" not in response.headers
    assert left == ["3", "2", "1", "0"]
    status, answer, response = await gateways[0].post(URL, CHAT, headers=auth("a-key"))
    assert (status, answer["error"]["type"], answer["error"]["code"]) == (
        429,
        "rate_limit_error",
        "rate_limit_exceeded",
    )
    assert 13 <= int(response.headers["Retry-After"]) <= 15
    assert response.headers["x-ratelimit-remaining-requests"] == "0"
    assert response.headers["x-ratelimit-reset-requests"] in ("1m0s", "59.9s", "59.8s", "59.7s")
    status, _, response = await gateways[0].post(URL, CHAT, headers=auth("b-key"))
    assert status == 200
    assert not any(name.lower().startswith("x-ratelimit") for name in response.headers)


async def test_tokens_per_minute_are_paid_afterwards(start: Any, backend: Any, bus: Bus, tmp_path: Path) -> None:
    gateway = await start(api_keys_file=file_of(tmp_path, entry("a", "a-key", tokens_per_minute=600)))
    backend.texts = ["x"] * 623  # and 7 of the prompt
    status, _, response = await gateway.post(URL, CHAT, headers=auth("a-key"))
    assert (status, response.headers["x-ratelimit-remaining-tokens"]) == (200, "600")
    await bus.outbox.flush()
    status, _, response = await gateway.post(URL, CHAT, headers=auth("a-key"))
    assert status == 429
    assert 2 <= int(response.headers["Retry-After"]) <= 4  # 30 in debt, ten come a second
    assert 0 < await bus.client.ttl(bus.key("rate:a")) <= 3600


async def test_a_limit_that_is_new_is_not_owed_what_came_before(bus: Bus) -> None:
    rates, requests, tokens = Rates(bus), a_key(requests_per_minute=5), a_key(tokens_per_minute=600)
    for _ in range(20):
        await rates.take_request(tokens)
    rates.charge_tokens(tokens, 630)
    await bus.outbox.flush()
    with pytest.raises(RateLimited):
        await rates.take_request(tokens)
    allowance = await rates.take_request(requests)
    assert allowance is not None
    assert (allowance.requests, allowance.tokens, allowance.wait_s) == (4, 0, 0)
    allowance = await rates.take_request(tokens)  # its old debt went with the old limit
    assert allowance is not None
    assert (allowance.requests, allowance.tokens) == (0, 600)


async def test_a_request_bucket_that_has_sunk_heals(bus: Bus) -> None:
    """As one in the broker may be that was taken from without a limit."""
    rates, key = Rates(bus), a_key(requests_per_minute=600)
    at = (await bus.client.time())[0] + 60  # so that it does not fill meanwhile
    await bus.client.hset(bus.key("rate:a"), mapping={"requests": "-90000", "tokens": "-5", "at": at})  # type: ignore[misc]
    with pytest.raises(RateLimited) as refused:
        await rates.take_request(key)
    assert 0 < refused.value.allowance.wait_s <= 0.1


async def test_streams_tell_their_limits_too(start: Any, backend: Any, tmp_path: Path) -> None:
    backend.texts = ["x"]
    gateway = await start(api_keys_file=file_of(tmp_path, entry("a", "a-key", requests_per_minute=4)))
    async with gateway.http.post(URL, json={**CHAT, "stream": True}, headers=auth("a-key")) as response:
        assert response.headers["x-ratelimit-remaining-requests"] == "3"
        assert b"[DONE]" in await response.read()


async def test_the_file_is_read_again(start: Any, backend: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(main, "RELOAD_S", 0.05)
    path = file_of(tmp_path, entry("a", "a-key"))
    gateway = await start(api_keys_file=path, api_key="one")

    async def answers(text: str) -> int:
        async with gateway.http.get("/v1/models", headers=auth(text)) as response:
            return int(response.status)

    async def until(text: str, status: int) -> None:
        deadline = time.monotonic() + 5
        while await answers(text) != status:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)

    assert (await answers("a-key"), await answers("b-key")) == (200, 401)
    for bad in ("broken", entry("b", "one"), entry("default", "b-key")):
        file_of(tmp_path, bad)
        await asyncio.sleep(0.3)
        assert [await answers(text) for text in ("a-key", "one", "b-key")] == [200, 200, 401]
    file_of(tmp_path, entry("b", "b-key"))
    await until("b-key", 200)
    assert await answers("a-key") == 401


async def test_admins_have_keys_of_their_own(start: Any, tmp_path: Path) -> None:
    path = "/v1/admin/load"
    for settings, given, status in (
        ({}, "", 403),
        ({"api_key": "a"}, "a", 403),
        ({"api_key": "a", "admin_api_key": "boss"}, "", 401),
        ({"api_key": "a", "admin_api_key": "boss"}, "wrong", 401),
        ({"api_key": "a", "admin_api_key": "boss"}, "a", 403),
        ({"api_key": "a", "admin_api_key": "boss"}, "boss", 200),
        ({"api_keys_file": file_of(tmp_path, entry("a", "a"), entry("r", "root", admin=True))}, "root", 200),
    ):
        gateway = await start(**settings)
        async with gateway.http.get(path, headers=auth(given) if given else {}) as response:
            assert response.status == status
            answer = await response.json()
            if status != 200:
                assert set(answer["error"]) == {"message", "type", "param", "code"}
                assert answer["error"]["code"] == ("permission_denied" if status == 403 else "invalid_api_key")
        await gateway.stop()


async def test_probes_may_need_a_key(start: Any) -> None:
    gateway = await start(api_key="a", open_probes=False)
    for path in ("/health", "/metrics"):
        for headers, status in (({}, 401), (auth("a"), 200)):
            async with gateway.http.get(path, headers=headers) as response:
                assert response.status == status


async def test_prefixes_are_shared_within_a_key_only(start: Any, backend: Any, tmp_path: Path) -> None:
    backend.texts = ["x"]
    path = file_of(tmp_path, entry("a", "a-key"), entry("b", "b-key"))
    gateway = await start(api_keys_file=path, isolate_keys=True)
    for text in ("a-key", "a-key", "b-key"):
        await gateway.post(URL, CHAT, headers=auth(text))
    await gateway.post(URL, {**CHAT, "cache_salt": "s"}, headers=auth("a-key"))
    salts = [request.cache_salt for request in backend.seen]
    assert salts[0] == salts[1]
    assert len(set(salts)) == 3


async def test_nothing_of_a_key_is_shown(
    start: Any, backend: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any, bus: Bus
) -> None:
    """Not in logs, not in answers, not in metrics, not in the broker; nor the hash."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(main, "RELOAD_S", 0.05)
    secret, other = "sk-5ecret-value", "sk-unknown-value"
    path = file_of(tmp_path, entry("a", secret, requests_per_minute=100))
    gateway = await start(api_keys_file=path, admin_api_key="sk-b0ss-value")
    backend.texts = ["x"]
    shown = []
    for text in (secret, other):
        for body in (CHAT, {**CHAT, "n": 0}, {**CHAT, "model": "nope"}):
            _, answer, response = await gateway.post(URL, body, headers={**auth(text), "Idempotency-Key": secret})
            shown.append(f"{answer} {response.headers}")

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("services.gateway.completions._messages", broken)
    _, answer, _ = await gateway.post(URL, CHAT, headers=auth(secret))
    file_of(tmp_path, "broken")
    await asyncio.sleep(0.3)
    async with gateway.http.get("/metrics") as response:
        shown.append(await response.text())
    for key in await bus.client.keys(bus.key("*")):
        shown.append(key.decode())
        if await bus.client.type(key) == b"string":
            shown.append(str(await bus.client.get(key)))
    shown.append(caplog.text)
    assert "ZeroDivisionError" in caplog.text
    for text in (secret, other, "sk-b0ss-value"):
        for piece in (text, hashlib.sha256(text.encode()).hexdigest()):
            assert not [one for one in shown if piece in one]
    assert keys.ANYBODY.name not in caplog.text


async def test_workers_are_asked_for_a_profile(start: Any, bus: Bus) -> None:
    gateway = await start(admin_api_key="boss")
    url = "/v1/admin/profile"
    status, answer, _ = await gateway.post(url, {"steps": 5, "path": "traces/t.json"}, headers=auth("boss"))
    assert (status, answer) == (202, {"workers": ["gpu_worker-1"]})
    await bus.outbox.flush()
    stream = control_stream("gpu_worker-1")
    async for batch in bus.follow(lambda: {stream: "0"}):
        assert [delivery.message for delivery in batch] == [Profile(steps=5, path="traces/t.json")]
        break
    assert 0 < await bus.client.ttl(bus.key("control:gpu_worker-1")) <= 60
    for body, status, param in (
        ({"steps": 0}, 400, "steps"),
        ({}, 400, "steps"),
        ({"steps": 1, "step": 1}, 400, None),
        ({"steps": 1, "worker": "w"}, 404, "worker"),
        ({"steps": 1, "path": "/etc/t.json"}, 400, "path"),
        ({"steps": 1, "path": "a/../../t.json"}, 400, "path"),
        ({"steps": 1, "path": "a/.ssh.json"}, 400, "path"),
        ({"steps": 1, "path": "t.json\n"}, 400, "path"),
    ):
        given, answer, _ = await gateway.post(url, body, headers=auth("boss"))
        assert (given, answer["error"]["param"]) == (status, param)
