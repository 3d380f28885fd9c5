"""Every error that a client, a peer or an operator can cause.

    SapwoodError
    ├── ConfigError            a setting, path or model that cannot be used: the process ends with one line
    ├── BusError               the broker cannot be used as asked (not: a connection that may come back)
    └── RequestError           ends one request; carries what the client is told
        ├── InvalidRequest     400, names the field
        ├── Unauthorized       401
        ├── Forbidden          403
        ├── NotFound           404
        ├── ModelNotFound      404
        ├── PromptTooLarge     413, the body is over the limit
        ├── Conflict           422, the request contradicts an earlier one
        ├── Overloaded         429, with Retry-After
        ├── Unavailable        503, with Retry-After
        ├── TimedOut           504, the request's time is up
        └── InternalError      500

The wire form follows OpenAI's error object: https://platform.openai.com/docs/guides/error-codes
"""

import msgspec


class SapwoodError(Exception):
    """Base of all errors that Sapwood raises on purpose."""


class ConfigError(SapwoodError):
    """A setting, a path or a model that cannot be used; in one line, whatever names and texts are told in it."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


class BusError(SapwoodError):
    """The broker cannot be used as asked."""


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a client is told of a failed request; travels in messages as it is."""

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None


class RequestError(SapwoodError):
    """Ends one request with a status and a message for its client."""

    status = 500
    type = "server_error"
    code: str | None = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else type(self).code
        self.retry_after_s = retry_after_s

    def body(self) -> ErrorBody:
        return ErrorBody(
            status=self.status,
            message=self.message,
            type=self.type,
            param=self.param,
            code=self.code,
            retry_after_s=self.retry_after_s,
        )


class InvalidRequest(RequestError):
    """400: a field of the request has a value that cannot be served."""

    status = 400
    type = "invalid_request_error"
    code = None


class Unauthorized(RequestError):
    """401: the API key is missing or wrong."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class Forbidden(RequestError):
    """403: the API key is good, and not for this."""

    status = 403
    type = "permission_error"
    code = "permission_denied"


class NotFound(RequestError):
    """404: what the URL names is not there."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class Conflict(RequestError):
    """422: the request contradicts an earlier one that it says it repeats."""

    status = 422
    type = "invalid_request_error"
    code = "idempotency_key_reused"


class ModelNotFound(RequestError):
    """404: no worker serves a model of that name."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class PromptTooLarge(RequestError):
    """413: the request body is larger than this server takes."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class Overloaded(RequestError):
    """429: as much work is in flight as this server holds; come back later."""

    status = 429
    type = "rate_limit_error"
    code = "overloaded"


class Unavailable(RequestError):
    """503: a part of the system is missing or starting; come back later."""

    status = 503
    type = "server_error"
    code = "unavailable"


class TimedOut(RequestError):
    """504: the request's time is up before its answer is complete."""

    status = 504
    type = "server_error"
    code = "timeout"


class InternalError(RequestError):
    """500: our fault."""
