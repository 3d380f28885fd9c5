"""Around every handler: the request's id, its API key, its errors in OpenAI's shape, its place in the counts."""

import asyncio
import logging
import re
import secrets
from collections.abc import Awaitable, Callable

from aiohttp import web

from services.gateway import expect, metrics
from services.gateway.keys import ANYBODY, ApiKey
from services.gateway.rates import Allowance, RateLimited, Rates
from services.gateway.replies import error_response
from services.gateway.state import GATEWAY
from services.gateway.trace import CLIENT_LEFT
from shared.errors import ErrorBody, Forbidden, InternalError, RequestError, Unauthorized

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

REQUEST_ID = "x-request-id"
PROBES = frozenset({"/health", "/ready", "/metrics", "/openapi.json"})
ADMIN_PREFIX = "/v1/admin/"
API_KEY = web.RequestKey("api_key", ApiKey)
_SAFE_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)
_KEY = web.RequestKey("request_id", str)
_ALLOWANCE: web.RequestKey[Allowance | None] = web.RequestKey("allowance")


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
    except asyncio.CancelledError:
        raise  # the client left
    except ConnectionError:
        raise asyncio.CancelledError("the client left") from None  # of another error aiohttp logs a traceback
    except Exception:
        status = 500
        log.exception("%s %s failed (%s)", request.method, request.path, request[_KEY])
        body = InternalError(f"An internal error; the server's log says more under {request[_KEY]}.").body()
        return error_response(body)
    finally:
        metrics.REQUESTS.labels(_endpoint(request), status).inc()


@web.middleware
async def require_key(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The bearer token, where one is needed; and an admin's for what is an admin's."""
    gateway = request.app[GATEWAY]
    is_admin_path = request.path.startswith(ADMIN_PREFIX)
    if not is_admin_path and (not gateway.keys or (gateway.settings.open_probes and request.path in PROBES)):
        request[API_KEY] = ANYBODY
        return await handler(request)
    if is_admin_path and not gateway.keys.has_admin:
        raise Forbidden("This needs an admin's API key, and the server was started without one (--admin-api-key).")
    scheme, _, text = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthorized("An API key is required: send it as 'Authorization: Bearer KEY'.")
    key = gateway.keys.find(text.strip())
    if key is None:
        raise Unauthorized("The API key is wrong.")
    if is_admin_path and not key.admin:
        raise Forbidden("This needs an admin's API key.")
    request[API_KEY] = key
    return await handler(request)


async def take_request(request: web.Request, rates: Rates) -> None:
    """Counts a request against its key's limits, and has the answer tell what is left. Raises RateLimited."""
    try:
        request[_ALLOWANCE] = await rates.take_request(request[API_KEY])
    except RateLimited as error:
        request[_ALLOWANCE] = error.allowance
        metrics.TURNED_AWAY.labels("rate").inc()
        raise


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """On every answer, streamed ones included. A gateway that is about to stop keeps no connection, and none is kept on
    which a body may come that was not asked for."""
    if request.app[GATEWAY].deployment.is_leaving or expect.waits(request):
        response.force_close()
        response.headers["Connection"] = "close"
    if _KEY in request:
        response.headers[REQUEST_ID] = request[_KEY]
    allowance = request.get(_ALLOWANCE)
    if allowance is not None:
        response.headers.update(allowance.headers())


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
