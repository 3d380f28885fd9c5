"""A gateway is killed in the middle of a stream; its client asks another one for the rest."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.services.gateway.sse import Event, said_of, split

pytestmark = pytest.mark.model

BODY = {
    "model": "SmolLM2-135M-Instruct",
    "messages": [{"role": "user", "content": "Count from one to twenty in words."}],
    "temperature": 1.0,
    "seed": 11,
    "max_tokens": 60,
    "stream": True,
}


def gateways_below(pid: int) -> list[int]:
    """The processes of the set that are gateways."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"services.gateway" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def read_some(response: requests.Response, num_events: int) -> list[Event]:
    said = b""
    for piece in response.iter_content(None):
        said += piece
        if said.endswith(b"\n\n") and len(events := split(said)) >= num_events:
            return events
    raise AssertionError("the stream ended")


def answer(url: str, headers: dict[str, str]) -> list[Event]:
    """The events of a stream, asked for until a gateway is there that takes it."""
    for _ in range(100):
        try:
            with requests.post(url, json=BODY, headers=headers, timeout=60) as response:
                if response.status_code == 200:
                    return split(response.content)
                assert response.status_code == 503, response.text
        except requests.ConnectionError:
            pass
        time.sleep(0.1)
    raise AssertionError("no gateway takes it")


def test_a_killed_gateways_stream_goes_on_at_another(serve: Callable[..., Any]) -> None:
    served = serve("--gateways=2", "--dtype=float32")
    url = f"{served.url}/v1/chat/completions"
    expected = said_of(answer(url, {}))
    headers = {"Idempotency-Key": "count"}
    with requests.post(url, json=BODY, headers=headers, stream=True, timeout=60) as response:
        had = read_some(response, 10)
        for gateway in gateways_below(served.process.pid):  # whichever of them it is; they come back
            os.kill(gateway, signal.SIGKILL)
    rest = answer(url, {**headers, "Last-Event-ID": had[-1].id})
    assert said_of([*had, *rest]) == expected
    assert said_of(answer(url, headers)) == expected  # it is over, and there
