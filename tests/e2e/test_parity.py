"""The default model in float32 gives the tokens that transformers gives: alone and in a mixed batch, with a cold and
a warm prefix cache, prefilled in chunks of 64 tokens.

SAPWOOD_PARITY_PROMPTS sets the number of prompts, which are longer, and their answers, where there are 20 or more (50
take more than ten minutes on two cores)."""

import asyncio
import os
import pydoc
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = [pytest.mark.model, pytest.mark.slow]

NUM_PROMPTS = int(os.environ.get("SAPWOOD_PARITY_PROMPTS", "4"))
LONGEST, MAX_TOKENS = (1500, 64) if NUM_PROMPTS >= 20 else (500, 40)
TOPICS = ("asyncio", "json", "random", "decimal", "argparse", "logging", "re", "socket", "os", "typing")


def some_prompts(tokenizer: Any, count: int) -> list[list[int]]:
    """Prompts of 5 tokens to LONGEST: stretches of the standard library's documentation."""
    rng = random.Random(7)
    texts = [tokenizer.encode(pydoc.plain(pydoc.render_doc(topic))) for topic in TOPICS]
    lengths = [5, LONGEST] + [int(5 * (LONGEST / 5) ** rng.random()) for _ in range(count - 2)]
    prompts = []
    for number, length in enumerate(lengths[:count]):
        text = [token for token in texts[number % len(texts)] if token != tokenizer.eos_token_id]
        start = rng.randrange(max(1, len(text) - length))
        prompts.append(text[start : start + length])
    return prompts


@pytest.fixture(scope="module")
def expected(default_model_folder: Path) -> list[tuple[list[int], list[int], str]]:
    """(prompt, greedy output, its text) by transformers."""
    tokenizer = AutoTokenizer.from_pretrained(default_model_folder)
    model = AutoModelForCausalLM.from_pretrained(default_model_folder, dtype=torch.float32).eval()
    out = []
    for prompt in some_prompts(tokenizer, NUM_PROMPTS):
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            whole = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_TOKENS, do_sample=False
            )[0].tolist()
        output = whole[len(prompt) :]
        before, after = tokenizer.decode(prompt), tokenizer.decode(whole, skip_special_tokens=True)
        assert after.startswith(before)
        out.append((prompt, output, after[len(before) :]))
    return out


async def test_greedy_output_is_transformers_output(
    serve: Callable[..., Any], default_model_folder: Path, expected: list[tuple[list[int], list[int], str]]
) -> None:
    served = serve("--model-path", str(default_model_folder), "--dtype", "float32", "--chunked-prefill-size", "64")
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as http:

        async def complete(prompt: list[int], salt: str) -> tuple[str, int, int]:
            body = {
                "model": default_model_folder.name,
                "prompt": prompt,
                "max_tokens": MAX_TOKENS,
                "temperature": 0,
                "cache_salt": salt,
            }
            async with http.post(f"{served.url}/v1/completions", json=body) as response:
                answer = await response.json()
                assert response.status == 200, answer
            usage = answer["usage"]
            cached = usage["prompt_tokens_details"]["cached_tokens"]
            return answer["choices"][0]["text"], usage["completion_tokens"], cached

        for temperature in ("cold", "warm"):
            for number, (prompt, output, text) in enumerate(expected):
                got, num_tokens, cached = await complete(prompt, f"alone-{number}")
                assert (got, num_tokens) == (text, len(output)), f"prompt {number} alone, cache {temperature}"
                assert cached == (0 if temperature == "cold" else len(prompt) - 1)
        for temperature in ("cold", "warm"):
            answers = await asyncio.gather(*(complete(prompt, "batch") for prompt, _, _ in expected))
            for number, ((_, output, text), (got, num_tokens, _)) in enumerate(zip(expected, answers, strict=True)):
                assert (got, num_tokens) == (text, len(output)), f"prompt {number} in the batch, cache {temperature}"
