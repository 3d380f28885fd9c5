"""Pages of other origins, as their browsers ask for them."""

from typing import Any

import pytest

from services.gateway.cors import Origins
from shared.errors import ConfigError

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
URL = "/v1/chat/completions"
PAGE = "http://localhost:5173"
ASKS = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
}


def cors(headers: Any) -> dict[str, str]:
    prefix = "access-control-"
    return {
        name.lower().removeprefix(prefix): value for name, value in headers.items() if name.lower().startswith(prefix)
    }


@pytest.mark.parametrize(
    ("setting", "told", "vary"), [(f"https://a.example, {PAGE}", PAGE, "Origin"), ("*", "*", None)]
)
async def test_an_allowed_page(start: Any, backend: Any, setting: str, told: str, vary: str | None) -> None:
    backend.texts = ["x"]
    gateway = await start(api_key="k", allowed_origins=setting)
    async with gateway.http.options(URL, headers=ASKS) as response:
        said = cors(response.headers)
        assert (response.status, response.headers.get("Vary"), said["allow-origin"]) == (204, vary, told)
        assert said["allow-headers"] == ASKS["Access-Control-Request-Headers"]
        assert {"GET", "POST", "DELETE"} == set(said["allow-methods"].split(", "))
    for path, key, fields, status in (
        (URL, "k", {}, 200),
        (URL, "k", {"stream": True}, 200),
        (URL, "k", {"n": 0}, 400),
        (URL, "wrong", {}, 401),
        ("/v1/nothing", "k", {}, 404),
    ):
        headers = {"Origin": PAGE, "Authorization": f"Bearer {key}"}
        async with gateway.http.post(path, json={**CHAT, **fields}, headers=headers) as response:
            said = cors(response.headers)
            assert (response.status, response.headers.get("Vary"), said["allow-origin"]) == (status, vary, told)
            assert {"x-request-id", "retry-after", "x-ratelimit-reset-tokens"} <= set(
                said["expose-headers"].split(", ")
            )
            await response.read()


@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost", "null", PAGE + ".evil.example"])
async def test_other_pages(start: Any, origin: str) -> None:
    gateway = await start(api_key="k", allowed_origins=PAGE)
    async with gateway.http.options(URL, headers={**ASKS, "Origin": origin}) as response:
        assert (response.status, cors(response.headers), response.headers["Vary"]) == (401, {}, "Origin")
    async with gateway.http.get("/v1/models", headers={"Origin": origin, "Authorization": "Bearer k"}) as response:
        assert (response.status, cors(response.headers), response.headers["Vary"]) == (200, {}, "Origin")


async def test_only_preflights_need_no_key(start: Any) -> None:
    gateway = await start(api_key="k", allowed_origins=PAGE)
    async with gateway.http.options(URL, headers={"Origin": PAGE}) as response:
        assert response.status == 401


async def test_nobody_is_allowed_unless_said_so(start: Any) -> None:
    gateway = await start()
    for method in ("OPTIONS", "POST"):
        async with gateway.http.request(method, URL, headers=ASKS) as response:
            assert response.status == {"OPTIONS": 405, "POST": 400}[method]
            assert (cors(response.headers), response.headers.get("Vary")) == ({}, None)


@pytest.mark.parametrize(
    "setting", ["localhost:5173", "http://a/", "http://a/chat", "http://*.example", "*.example", "http://a b"]
)
def test_what_is_no_origin_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match="--allowed-origins: "):
        Origins(setting)
