"""The gateway's URLs."""

from aiohttp import web

from services.gateway import admin, completions, openapi, probes, streams
from services.gateway.middlewares import add_headers, count_and_shape_errors, require_key
from services.gateway.state import GATEWAY, Gateway


def make_app(gateway: Gateway) -> web.Application:
    app = web.Application(middlewares=[count_and_shape_errors, require_key])
    app[GATEWAY] = gateway
    app.on_response_prepare.append(add_headers)
    app.router.add_post("/v1/chat/completions", completions.chat_completions)
    app.router.add_post("/v1/completions", completions.completions)
    app.router.add_get("/v1/streams/{id}", streams.get)
    app.router.add_delete("/v1/streams/{id}", streams.delete)
    app.router.add_get("/v1/models", probes.models)
    app.router.add_get("/v1/models/{model:.+}", probes.model)
    app.router.add_get("/v1/admin/load", admin.load)
    app.router.add_post("/v1/admin/profile", admin.profile)
    app.router.add_get("/health", probes.health)
    app.router.add_get("/ready", probes.ready)
    app.router.add_get("/metrics", probes.metrics)
    app.router.add_get("/openapi.json", openapi.get)
    return app
