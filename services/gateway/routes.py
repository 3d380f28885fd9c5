"""The gateway's URLs."""

from functools import partial

from aiohttp import web

from services.gateway import admin, completions, openapi, probes, streams
from services.gateway.cors import Origins
from services.gateway.expect import answer_later, check_expect
from services.gateway.middlewares import add_headers, count_and_shape_errors, require_key
from services.gateway.state import GATEWAY, Gateway


def make_app(gateway: Gateway, origins: Origins | None = None) -> web.Application:
    """origins: whose pages may ask from browsers; None: this server's own only."""
    middlewares = [count_and_shape_errors, check_expect, require_key]
    if origins:
        middlewares.insert(1, origins.answer_preflight)
    app = web.Application(middlewares=middlewares)
    app[GATEWAY] = gateway
    app.on_response_prepare.append(add_headers)
    if origins:
        app.on_response_prepare.append(origins.add_headers)
    router = app.router
    get, post, delete = (
        partial(add, expect_handler=answer_later) for add in (router.add_get, router.add_post, router.add_delete)
    )
    post("/v1/chat/completions", completions.chat_completions)
    post("/v1/completions", completions.completions)
    get("/v1/streams/{id}", streams.get)
    delete("/v1/streams/{id}", streams.delete)
    get("/v1/models", probes.models)
    get("/v1/models/{model:.+}", probes.model)
    get("/v1/admin/load", admin.load)
    post("/v1/admin/profile", admin.profile)
    get("/health", probes.health)
    get("/ready", probes.ready)
    get("/metrics", probes.metrics)
    get("/openapi.json", openapi.get)
    return app
