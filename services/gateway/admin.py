"""/v1/admin: for operators, with an admin's API key."""

from typing import Annotated

import msgspec
from aiohttp import web
from msgspec import Meta

from services.gateway import answers
from services.gateway.body import json_body
from services.gateway.job import decode_body
from services.gateway.replies import json_response
from services.gateway.state import GATEWAY
from shared.errors import NotFound
from shared.messages import TRACE_PATH, Profile
from shared.streams import control_stream

CONTROL_EXPIRES_S = 60
"""A worker that does not read its commands within so long does not get them."""


class ProfileRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/admin/profile. worker: instance name; left out: every worker. path: a .json file below the folder of
    the worker's --profile-file, which is meant if it is left out; the worker's name is added to the file's."""

    steps: Annotated[int, Meta(ge=1, le=10_000)]
    worker: str | None = None
    path: Annotated[str, Meta(max_length=1024, pattern=rf"^({TRACE_PATH})?$(?!\n)")] = ""


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """The commands are on their way to these workers."""

    workers: list[str]


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """GET /v1/admin/load: what this gateway has in flight."""

    gateway: str
    requests: int
    prompt_tokens: int
    body_bytes: int
    requests_by_key: dict[str, int]
    is_stopping: bool


_profile = msgspec.json.Decoder(ProfileRequest)


async def profile(request: web.Request) -> web.Response:
    """POST /v1/admin/profile: has workers trace their next steps to a file."""
    gateway = request.app[GATEWAY]
    async with json_body(request, gateway.bodies) as body:
        asked = decode_body(body, _profile)
    workers = gateway.deployment.workers
    if asked.worker is not None:
        if asked.worker not in workers:
            known = ", ".join(workers) or "none"
            raise NotFound(f"There is no worker '{asked.worker[:100]}'; there are: {known}.", param="worker")
        workers = [asked.worker]
    for worker in workers:
        gateway.bus.outbox.post(control_stream(worker), Profile(steps=asked.steps, path=asked.path))
        gateway.bus.outbox.expire(control_stream(worker), CONTROL_EXPIRES_S)
    return json_response(answers.encode(Accepted(workers=workers)), status=202)


async def load(request: web.Request) -> web.Response:
    """GET /v1/admin/load"""
    gateway = request.app[GATEWAY]
    report = LoadReport(
        gateway=gateway.instance,
        requests=gateway.load.requests,
        prompt_tokens=gateway.load.prompt_tokens,
        body_bytes=gateway.bodies.used,
        requests_by_key=dict(gateway.by_key),
        is_stopping=gateway.deployment.is_stopping,
    )
    return json_response(answers.encode(report))
