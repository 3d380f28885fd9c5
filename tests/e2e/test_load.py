"""Two hundred streams at once on a pool that is too small for them, with clients that hang up midway."""

import asyncio
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis
import requests
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 300
NUM_STREAMS = 200
HANG_UP = 0.3


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded Llama of two layers whose greedy output wanders through the vocabulary."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w0", eos_token="w1").save_pretrained(folder)
    return folder


def some_requests(rng: random.Random, count: int) -> list[dict[str, Any]]:
    """Prompts of 4 to 150 token ids, many with a stem in common, and 8 to 60 tokens of output each."""
    stems = [[rng.randrange(2, VOCABULARY) for _ in range(96)] for _ in range(3)]
    out = []
    for _ in range(count):
        stem = rng.choice(stems)[: rng.choice([0, 0, 40, 96])]
        prompt = stem + [rng.randrange(2, VOCABULARY) for _ in range(rng.randrange(4, 54))]
        out.append({"prompt": prompt, "max_tokens": rng.randrange(8, 60)})
    return out


async def stream(http: aiohttp.ClientSession, url: str, request: dict[str, Any], hang_up_after: int | None) -> str:
    """The answer's text; what came until then if the client hangs up."""
    body = {"model": "tiny", "temperature": 0, "ignore_eos": True, "stream": True, **request}
    text, events = "", 0
    async with http.post(f"{url}/v1/completions", json=body) as response:
        assert response.status == 200, await response.text()
        async for line in response.content:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            event = json.loads(line[6:])
            assert "error" not in event, event
            text += event["choices"][0]["text"]
            events += 1
            if events == hang_up_after:
                response.close()
                return text
    return text


def metric(text: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    total = 0.0
    for line in text.splitlines():
        found = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
        if found and all(f'{key}="{value}"' in (found[1] or "") for key, value in labels.items()):
            total += float(found[2])
    return total


@pytest.mark.slow
async def test_surviving_streams_get_the_answer_that_they_get_alone(
    serve: Callable[..., Any], tiny_model: Path, broker_url: str, free_ports: Callable[[int], int]
) -> None:
    num_pages, ports = 56, free_ports(4)
    served = serve(
        *("--model-path", str(tiny_model), "--served-model-name", "tiny", "--dtype", "float32"),
        *("--num-pages", str(num_pages), "--max-model-len", "512", "--chunked-prefill-size", "64"),
        *("--headroom-tokens", "8", "--low-water-tokens", "4"),
        *("--redis-url", broker_url, "--key-prefix", "load", "--metrics-port", str(ports)),
    )

    def metrics() -> str:
        pages = [requests.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text for port in range(ports, ports + 4)]
        return "\n".join(pages)

    rng = random.Random(5)
    distinct = some_requests(rng, 40)
    timeout = aiohttp.ClientTimeout(total=240)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as http:
        alone = [await stream(http, served.url, request, None) for request in distinct]
        assert len(set(alone)) > 30
        await asyncio.sleep(1.5)
        tasks_before = metric(metrics(), "sapwood_asyncio_tasks")
        picks = [rng.randrange(len(distinct)) for _ in range(NUM_STREAMS)]
        cuts = [rng.randrange(1, 8) if rng.random() < HANG_UP else None for _ in picks]
        answers = await asyncio.gather(
            *(stream(http, served.url, distinct[pick], cut) for pick, cut in zip(picks, cuts, strict=True))
        )
    for pick, cut, answer in zip(picks, cuts, answers, strict=True):
        if cut is None:
            assert answer == alone[pick]
        else:
            assert alone[pick].startswith(answer)

    await asyncio.sleep(2.5)  # heartbeats and exports are due once a second
    text = metrics()
    assert metric(text, "sapwood_scheduler_retractions_total") > 0
    free, cached = (metric(text, "sapwood_scheduler_pages", state=state) for state in ("free", "cached"))
    assert free + cached == num_pages, "a page is still held"
    assert cached > 0
    assert metric(text, "sapwood_scheduler_running_sequences") == 0
    assert metric(text, "sapwood_scheduler_waiting_sequences") == 0
    assert metric(text, "sapwood_requests_in_flight") == 0
    assert metric(text, "sapwood_stream_dead_letters_total") == 0
    assert metric(text, "sapwood_asyncio_tasks") <= tasks_before  # a connection of before may have been closed

    broker = redis.Redis.from_url(broker_url)
    for name, group in (("tokenize", "tokenizers"), ("schedule", "schedulers")):
        assert broker.xlen(f"load:{name}") == 0
        assert broker.xpending(f"load:{name}", group)["pending"] == 0
    for shard in range(4):
        assert broker.xlen(f"load:tokens:{shard}") <= 1, "the shard is not trimmed"
    broker.close()
    assert served.stop() == 0
