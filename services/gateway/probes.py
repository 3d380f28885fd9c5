"""Everything but completions: what is served, whether it is well, what it counts."""

import prometheus_client
from aiohttp import web

from services.gateway import answers
from services.gateway.replies import json_response
from services.gateway.state import GATEWAY


async def models(request: web.Request) -> web.Response:
    """GET /v1/models"""
    served = request.app[GATEWAY].deployment.models
    return json_response(answers.model_list([served[name] for name in sorted(served)]))


async def model(request: web.Request) -> web.Response:
    """GET /v1/models/{model}"""
    card = answers.model_card(request.app[GATEWAY].deployment.model(request.match_info["model"]))
    return json_response(answers.encode(card))


async def health(request: web.Request) -> web.Response:
    """GET /health: this process lives."""
    return json_response(b'{"status":"ok"}')


async def ready(request: web.Request) -> web.Response:
    """GET /ready: 200 as long as requests are taken here, 503 otherwise; and the reasons, or what else is amiss."""
    deployment = request.app[GATEWAY].deployment
    faults = deployment.faults()
    if deployment.is_ready:
        status = "degraded" if faults else "ready"
        return json_response(answers.encode({"status": status, "reasons": faults}))
    return json_response(
        answers.encode({"status": "not ready", "reasons": faults}), status=503, headers={"Retry-After": "1"}
    )


async def metrics(request: web.Request) -> web.Response:
    """GET /metrics: Prometheus text."""
    return web.Response(
        body=prometheus_client.generate_latest(), headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST}
    )
