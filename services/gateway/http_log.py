"""What the HTTP server logs. A request that is no HTTP is its client's fault: one line for those who want to see such
things, without a traceback and without anything of what was sent, which may be a key or a prompt."""

import logging
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

_OF_CLIENTS = (HttpProcessingError, web.RequestPayloadError)


class ServerLog(logging.LoggerAdapter[logging.Logger]):
    """The logger that aiohttp's server is given."""

    def exception(self, msg: object, *args: object, exc_info: Any = True, **options: Any) -> None:
        if isinstance(exc_info, _OF_CLIENTS):
            self.info(f"{msg}: it is no HTTP (%s)", *args, type(exc_info).__name__)
        else:
            super().exception(msg, *args, exc_info=exc_info, **options)

    def debug(self, msg: object, *args: object, exc_info: Any = None, **options: Any) -> None:
        if isinstance(exc_info, _OF_CLIENTS):
            self.exception(msg, *args, exc_info=exc_info)
        else:
            super().debug(msg, *args, exc_info=exc_info, **options)


log = ServerLog(logging.getLogger(__name__), {})
