"""What is logged of requests that are no HTTP."""

import asyncio
import logging
from typing import Any

import pytest

from services.gateway.http_log import ServerLog

SECRET = b"hush-hush"
COMPLETIONS = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
MALFORMED = {
    "TLS": b"\x16\x03\x01\x02\x00\x01" + SECRET,
    "version": b"GET / HTTP/9.9" + SECRET + b"\r\n\r\n",
    "name of a header": b"GET / HTTP/1.1\r\nA b: " + SECRET + b"\r\n\r\n",
    "value of a header": b"GET / HTTP/1.1\r\nAuthorization: Bearer " + SECRET + b"\x00\r\n\r\n",
    "long header": b"GET / HTTP/1.1\r\nHost: x\r\nX: " + SECRET * 3000 + b"\r\n\r\n",
    "long line": b"GET /" + SECRET * 3000 + b" HTTP/1.1\r\n\r\n",
    "URL": b"GET http://[::1" + SECRET + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "length": COMPLETIONS + b"Content-Length: -5" + SECRET + b"\r\n\r\n",
    "chunk": COMPLETIONS + b"Transfer-Encoding: chunked\r\n\r\n" + SECRET + b"\r\n\r\n",
    "later chunk": COMPLETIONS + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n" + SECRET + b"\r\n\r\n",
    "compression": COMPLETIONS + b"Content-Encoding: gzip\r\nContent-Length: 9\r\n\r\n" + SECRET,
    "rest of a body": COMPLETIONS + b"Content-Length: 2\r\n\r\n{}" + SECRET + b"\r\n\r\n",
}


@pytest.mark.parametrize("sent", MALFORMED.values(), ids=list(MALFORMED))
async def test_a_malformed_request_is_one_line_that_shows_nothing_of_it(
    gateway: Any, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    caplog.set_level(logging.DEBUG)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.settings.port)
    writer.write(sent)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert b" 400 " in answer
    said = [one for one in caplog.records if one.name == "services.gateway.http_log"]
    assert [one.levelname for one in said] == ["INFO"]
    assert not [one for one in caplog.records if one.exc_info]
    assert "\n" not in said[0].getMessage()
    assert SECRET.decode() not in caplog.text


def test_what_is_no_fault_of_clients_has_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    ServerLog(logging.getLogger("x"), {}).exception("Unhandled exception", exc_info=ValueError("why"))
    (record,) = caplog.records
    assert (record.levelname, str(record.exc_info and record.exc_info[1])) == ("ERROR", "why")
