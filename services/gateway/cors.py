"""Pages of other origins: which may ask this server from a browser, and what a browser lets them see of the answers."""

import re
from collections.abc import Awaitable, Callable

from aiohttp import web

from shared.errors import ConfigError

ANY = "*"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#@*]+")
_METHODS = "GET, POST, DELETE"
_PREFLIGHT_KEPT_S = "600"
_EXPOSED = ", ".join(
    [
        "x-request-id",
        "retry-after",
        "x-sapwood-ignored-fields",
        *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
    ]
)


class Origins:
    """The origins of `--allowed-origins`."""

    def __init__(self, setting: str) -> None:
        """Raises ConfigError for what no browser sends as an origin."""
        self._allowed = {origin for one in setting.split(",") if (origin := one.strip().lower())}
        for origin in sorted(self._allowed - {ANY}):
            if not _ORIGIN.fullmatch(origin):
                raise ConfigError(f"--allowed-origins: {origin} is not of the form scheme://host or scheme://host:port")

    def __bool__(self) -> bool:
        return bool(self._allowed)

    @web.middleware
    async def answer_preflight(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Browsers ask before they send what a page wants to send, and send no key with that."""
        is_preflight = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
        if not is_preflight or self._told(request) is None:
            return await handler(request)
        headers = {"Access-Control-Allow-Methods": _METHODS, "Access-Control-Max-Age": _PREFLIGHT_KEPT_S}
        if wanted := request.headers.get("Access-Control-Request-Headers"):
            headers["Access-Control-Allow-Headers"] = wanted  # not *, which leaves out Authorization
        return web.Response(status=204, headers=headers)

    async def add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """On every answer, errors and streams included."""
        if ANY not in self._allowed:
            response.headers.add("Vary", "Origin")  # no cache may give one origin's answer to another
        if (told := self._told(request)) is not None:
            response.headers["Access-Control-Allow-Origin"] = told
            response.headers["Access-Control-Expose-Headers"] = _EXPOSED

    def _told(self, request: web.Request) -> str | None:
        """The origin that may see the answer; None: that of the request may not, or it has none."""
        origin = request.headers.get("Origin")
        if origin is None:
            return None
        if ANY in self._allowed:
            return ANY
        return origin if origin.lower() in self._allowed else None
