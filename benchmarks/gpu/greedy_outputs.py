"""Greedy answers of a model to varied prompts, to compare devices.

    python -m benchmarks.gpu.greedy_outputs --model-path DIR --device cpu --out cpu.json
    python -m benchmarks.gpu.greedy_outputs --model-path DIR --device cuda --against cpu.json

Prompts are passages of 5 to 1,500 tokens of this project's pages, which are kept with the answers, as pages change;
answers have 32 tokens. Float32 unless told otherwise. Exit code 1 when an answer differs.
"""

import argparse
import json
import sys
import time
from array import array
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from services.gpu_worker.config import Settings, resolve
from services.gpu_worker.engine import Engine
from services.gpu_worker.load import load_executor
from shared.messages import Admit, Plan, Sampling
from shared.packing import pack_i32

NUM_TOKENS = 32


def prompts(model_path: str, count: int) -> list[list[int]]:
    """Passages of this project's own pages."""
    tokenizer = Tokenizer.from_file(str(Path(model_path) / "tokenizer.json"))
    pages = sorted(Path(__file__).parents[2].glob("**/*.md"))
    ids = tokenizer.encode("\n".join(page.read_text() for page in pages), add_special_tokens=False).ids
    lengths = np.geomspace(5, 1500, count).astype(int).tolist()
    starts = np.linspace(0, len(ids) - 1600, count).astype(int).tolist()
    return [ids[start : start + length] for start, length in zip(starts, lengths, strict=True)]


def answers(settings: Settings, asked: list[list[int]]) -> list[list[int]]:
    limits = resolve(settings)
    executor = load_executor(settings, limits)
    executor.warm_up()
    engine = Engine(executor, limits.prefill_budget, time.time)
    pages = -(-1600 // executor.page_size)
    admits = [
        Admit(
            sequence_id=i,
            shard=0,
            token_ids=pack_i32(array("i", prompt)),
            num_prompt=len(prompt),
            cached=0,
            page_table=pack_i32(array("i", range(i * pages, (i + 1) * pages))),
            sampling=Sampling(temperature=0.0),
            stop_token_ids=[],
            max_tokens=NUM_TOKENS,
        )
        for i, prompt in enumerate(asked)
    ]
    engine.apply(Plan(epoch=engine.epoch, number=1, commands=list(admits)))
    while engine.step() is not None:
        pass
    report = engine.take_report()
    assert report is not None
    out: list[list[int]] = [[] for _ in admits]
    for tokens in report.tokens.values():
        for sequence_id, token in zip(tokens.sequence_ids, tokens.token_ids, strict=True):
            out[sequence_id].append(token)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--against", type=Path)
    arguments = parser.parse_args()
    expected = json.loads(arguments.against.read_text()) if arguments.against else None
    asked = expected["prompts"] if expected else prompts(arguments.model_path, arguments.count)
    settings = Settings(
        model_path=arguments.model_path,
        device=arguments.device,
        dtype=arguments.dtype,
        num_pages=3000,
        max_running=32,
        max_model_len=2048,
    )
    got = answers(settings, asked)
    if arguments.out:
        arguments.out.write_text(json.dumps({"prompts": asked, "answers": got}))
    if expected:
        same = [
            next((i for i, (a, b) in enumerate(zip(x, y, strict=True)) if a != b), NUM_TOKENS)
            for x, y in zip(got, expected["answers"], strict=True)
        ]
        print(f"{sum(n == NUM_TOKENS for n in same)} of {len(same)} answers are equal; equal tokens: {same}")
        sys.exit(any(n < NUM_TOKENS for n in same))


if __name__ == "__main__":
    main()
