"""Models, health, readiness, metrics."""

import asyncio
import time
from typing import Any

import openai
import pytest

from services.gateway import deployment
from tests.services.gateway.conftest import an_instance, register


async def test_models(gateway: Any) -> None:
    client = gateway.openai()
    (model,) = (await client.models.list()).data
    assert (model.id, model.object, model.owned_by) == ("tiny", "model", "sapwood")
    assert model.model_extra["max_model_len"] == 512
    assert (await client.models.retrieve("tiny")) == model
    with pytest.raises(openai.NotFoundError) as refused:
        await client.models.retrieve("nope")
    assert refused.value.code == "model_not_found"


async def test_a_model_has_its_shortest_workers_context_and_may_have_slashes(start: Any) -> None:
    there = [an_instance("tokenizer"), an_instance("scheduler")]
    long = an_instance("gpu_worker", model="org/m", max_model_len=900)
    short = an_instance("gpu_worker", model="org/m", max_model_len=300)
    gone = an_instance("gpu_worker", model="old", at=time.time() - 10)
    named = [
        type(one)(**{name: getattr(one, name) for name in one.__struct_fields__} | {"instance": f"w{place}"})
        for place, one in enumerate((long, short, gone))
    ]
    gateway = await start([*there, *named])
    async with gateway.http.get("/v1/models") as response:
        data = (await response.json())["data"]
    assert [(model["id"], model["max_model_len"]) for model in data] == [("org/m", 300)]
    async with gateway.http.get("/v1/models/org/m") as response:
        assert (await response.json())["id"] == "org/m"


async def test_health_and_ready(gateway: Any, bus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "SHORT_ABSENCE_S", 0.2)
    async with gateway.http.get("/health") as response:
        assert response.status == 200
    for _ in range(300):
        async with gateway.http.get("/ready") as response:
            status, body = response.status, await response.json()
        if body["status"] == "ready":
            break
        await asyncio.sleep(0.01)
    assert (status, body) == (200, {"status": "ready", "reasons": []})
    await register(bus, an_instance("gpu_worker", at=time.time() - 7))
    for _ in range(300):
        async with gateway.http.get("/ready") as response:
            status, body, headers = response.status, await response.json(), response.headers
        if status == 503:
            break
        await asyncio.sleep(0.01)
    assert status == 503
    assert headers["Retry-After"] == "1"
    assert len(body["reasons"]) == 1
    assert "gpu_worker/gpu_worker-1 was last heard of" in body["reasons"][0]


async def test_metrics(gateway: Any, backend: Any) -> None:
    async def read() -> dict[str, float]:
        async with gateway.http.get("/metrics") as response:
            assert response.status == 200
            assert response.content_type == "text/plain"
            lines = [line for line in (await response.text()).splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    before = await read()
    backend.texts = ["a", "b", "c"]
    await gateway.post("/v1/completions", {"model": "tiny", "prompt": "x"})
    await gateway.post("/v1/completions", {"model": "tiny", "prompt": "x", "n": 0})
    after = await read()

    def grew(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grew('sapwood_requests_total{endpoint="/v1/completions",status="200"}') == 1
    assert grew('sapwood_requests_total{endpoint="/v1/completions",status="400"}') == 1
    assert after["sapwood_requests_in_flight"] == 0
    assert grew("sapwood_prompt_tokens_total") == 7
    assert grew("sapwood_completion_tokens_total") == 3
    assert grew("sapwood_cached_prompt_tokens_total") == 4
    assert grew("sapwood_time_to_first_token_seconds_count") == 1
    assert grew("sapwood_request_latency_seconds_count") == 1
    assert grew("sapwood_inter_token_latency_seconds_count") == 2
    assert grew('sapwood_inter_token_latency_seconds_bucket{le="+Inf"}') == 2
