"""Small answers as HTTP."""

from aiohttp import web

from services.gateway import answers
from shared.errors import ErrorBody


def error_response(body: ErrorBody, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        status=body.status,
        body=answers.error(body),
        content_type="application/json",
        headers={**answers.error_headers(body), **(headers or {})},
    )


def json_response(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)
