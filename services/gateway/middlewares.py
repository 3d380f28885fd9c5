"""Around every handler: the request's id, its API key, its errors in OpenAI's shape, its place in the counts."""

import asyncio
import hmac
import logging
import re
import secrets
from collections.abc import Awaitable, Callable

from aiohttp import web

from services.gateway import answers, metrics
from services.gateway.state import GATEWAY
from services.gateway.trace import CLIENT_LEFT
from shared.errors import ErrorBody, InternalError, RequestError, Unauthorized

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

REQUEST_ID = "x-request-id"
OPEN_PATHS = frozenset({"/health", "/ready", "/metrics"})
_SAFE_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)
_KEY = web.RequestKey("request_id", str)


@web.middleware
async def count_and_shape_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The outermost. Catches everything: a client is always told in the same shape, and never a traceback."""
    given = request.headers.get(REQUEST_ID, "")
    request[_KEY] = given if _SAFE_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"
    status = CLIENT_LEFT
    try:
        response = await handler(request)
        status = response.status
        return response
    except RequestError as error:
        status = error.status
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
        return error_response(error.body(), headers)
    except web.HTTPException as error:
        status = error.status
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return error_response(_from_http(request, error), headers)
    except (asyncio.CancelledError, ConnectionError):
        raise  # the client left
    except Exception:
        status = 500
        log.exception("%s %s failed (%s)", request.method, request.path, request[_KEY])
        body = InternalError(f"An internal error; the server's log says more under {request[_KEY]}.").body()
        return error_response(body)
    finally:
        metrics.REQUESTS.labels(_endpoint(request), status).inc()


@web.middleware
async def require_key(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The bearer token, if one is set; probes and metrics are open."""
    expected = request.app[GATEWAY].settings.api_key
    if expected and request.path not in OPEN_PATHS:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthorized("An API key is required: send it as 'Authorization: Bearer KEY'.")
        if not hmac.compare_digest(key.strip().encode(errors="surrogateescape"), expected.encode()):
            raise Unauthorized("The API key is wrong.")
    return await handler(request)


async def add_request_id(request: web.Request, response: web.StreamResponse) -> None:
    """On every answer, streamed ones included."""
    if _KEY in request:
        response.headers[REQUEST_ID] = request[_KEY]


def error_response(body: ErrorBody, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        status=body.status,
        body=answers.error(body),
        content_type="application/json",
        headers={**answers.error_headers(body), **(headers or {})},
    )


def _from_http(request: web.Request, error: web.HTTPException) -> ErrorBody:
    """aiohttp's own refusals."""
    message, code = error.reason, None
    if error.status == 404:
        message, code = f"Unknown URL: {request.method} {request.path}", "unknown_url"
    elif error.status == 405:
        message, code = f"{request.method} is not allowed for {request.path}.", "method_not_allowed"
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    return ErrorBody(status=error.status, message=message, type=kind, code=code)


def _endpoint(request: web.Request) -> str:
    """The route as it was declared: a label of few values."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unknown"
