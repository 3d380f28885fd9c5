"""`docker compose up` for real. Builds images, so it runs only when asked for: SAPWOOD_TEST_COMPOSE=1."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

ROOT = Path(__file__).parents[2]
COMPOSE = ["docker", "compose", "-f", "docker-compose.yml", "-f", "tests/e2e/compose/docker-compose.yml"]
URL = "http://127.0.0.1:30000"
MODEL = "SmolLM2-135M-Instruct"
QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "What is the capital of France?"}]}
STAGES = [
    ("sapwood-gateway", "POST /v1/chat/completions"),
    ("sapwood-tokenizer", "tokenize"),
    ("sapwood-scheduler", "schedule.wait"),
    ("sapwood-gpu_worker", "prefill"),
    ("sapwood-gpu_worker", "decode"),
    ("sapwood-tokenizer", "detokenize"),
]

pytestmark = [
    pytest.mark.skipif(not os.environ.get("SAPWOOD_TEST_COMPOSE"), reason="builds images; set SAPWOOD_TEST_COMPOSE=1"),
    pytest.mark.timeout(1800),
]


def compose(*arguments: str) -> str:
    # in float32 a prompt's answer does not depend on how much of it was cached
    environment = {**os.environ, "SAPWOOD_DTYPE": "float32"}
    done = subprocess.run(
        [*COMPOSE, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def system() -> Iterator[None]:
    """Up, with two tokenizers; down at the end, volumes included."""
    try:
        compose("up", "--build", "--wait", "--scale", "tokenizer=2")
        yield
    finally:
        subprocess.run([*COMPOSE, "down", "--volumes", "--timeout", "20"], cwd=ROOT, capture_output=True, check=True)


def ask() -> str:
    body = {**QUESTION, "temperature": 0, "max_tokens": 20}
    response = requests.post(f"{URL}/v1/chat/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def test_it_is_ready_and_answers(system: None) -> None:
    for _ in range(20):  # a container is healthy up to a second before the gateway has seen that it is
        reasons = requests.get(f"{URL}/ready", timeout=5).json()["reasons"]
        if not reasons:
            break
        time.sleep(0.5)
    assert reasons == []
    assert ask() == "The capital of France is Paris."


def test_a_request_is_one_chain_over_the_containers(system: None) -> None:
    trace_id, parent = "1" * 32, "2" * 16
    answer = requests.post(
        f"{URL}/v1/chat/completions",
        json={**QUESTION, "max_tokens": 4},
        headers={"traceparent": f"00-{trace_id}-{parent}-01"},
        timeout=60,
    )
    assert answer.status_code == 200
    deadline = time.monotonic() + 20
    spans: dict[str, dict[str, str]] = {}
    while len(spans) < len(STAGES) and time.monotonic() < deadline:
        time.sleep(0.5)
        received = requests.get("http://127.0.0.1:4318/spans", timeout=5).json()
        spans = {span["parent_id"]: span for span in received if span["trace_id"] == trace_id}
    chain = []
    while parent in spans:
        chain.append((spans[parent]["service"], spans[parent]["name"]))
        parent = spans[parent]["span_id"]
    assert chain == STAGES


def test_nobody_is_root(system: None) -> None:
    for service in ("gateway", "tokenizer", "scheduler", "gpu_worker"):
        assert compose("exec", "-T", service, "id", "-u").strip() == "10001"


def test_a_worker_that_is_killed_comes_back(system: None) -> None:
    compose("kill", "--signal", "KILL", "gpu_worker")
    compose("up", "--wait", "--no-build", "--scale", "tokenizer=2")
    assert ask() == "The capital of France is Paris."


def test_answers_go_on_after_redis_restarts(system: None) -> None:
    compose("restart", "redis")
    deadline = time.monotonic() + 60
    while requests.get(f"{URL}/ready", timeout=5).status_code != 200:
        assert time.monotonic() < deadline, "not ready again"
        time.sleep(0.5)
    assert ask() == "The capital of France is Paris."
