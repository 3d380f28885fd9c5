"""Answers of a running server to schemas and expressions of many kinds: each that ends by itself matches.

    python -m benchmarks.structured.answers URL --model-path DIR [--schemas 500] [--regexes 200] [--file schemas.jsonl]

Sends the constraints of `kinds.py` (and one in `--every` of a file that `gather.py` wrote), each with a seed of its
own, at temperature 1. An answer that ended by itself must be valid to `jsonschema`, or matched as a whole by Python's
`re`; one that was cut must be a beginning of something that the grammar allows. Exits with 1 if one is not.
"""

import argparse
import asyncio
import collections
import json
import re
import sys
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import aiohttp
import xgrammar

from benchmarks.structured.coverage import fault_of, read_cases, validator
from benchmarks.structured.kinds import expression, schema
from services.tokenizer.config import Settings
from services.tokenizer.grammar.compile import to_source
from services.tokenizer.model_files import ModelFiles, load_model_files
from shared.grammar import compile_source

Json = Any
PROMPT = "Write an example of a record, as it would be in real life:\n"


class Prefixes:
    """Whether a text is a beginning of what a constraint allows; with a vocabulary of bytes, since it is about text."""

    def __init__(self, model: ModelFiles) -> None:
        self._max_characters = model.max_model_len * max(map(len, model.backend.get_vocab(with_added_tokens=True)))
        info = xgrammar.TokenizerInfo([bytes([byte]) for byte in range(256)], xgrammar.VocabType.RAW, stop_token_ids=[])
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)

    def has(self, kind: str, source: str, text: str) -> bool:
        grammar = compile_source(self._compiler, to_source(kind, source, self._max_characters))
        return bool(xgrammar.GrammarMatcher(grammar).accept_string(text.removesuffix("\ufffd")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--schemas", type=int, default=500)
    parser.add_argument("--regexes", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first schema and expression")
    parser.add_argument("--file", type=Path, help="more schemas, as `gather.py` writes them")
    parser.add_argument("--every", type=int, default=10, help="take one schema of so many of the file")
    parser.add_argument("--max-tokens", type=int, default=120)
    parser.add_argument("--concurrency", type=int, default=32)
    args = parser.parse_args()
    first: int = args.first
    jobs: list[tuple[str, str, Json]] = []
    jobs += [("kinds", f"schema {n}", schema(n)) for n in range(first, first + args.schemas)]
    jobs += [("regex", f"regex {n}", expression(n)) for n in range(first, first + args.regexes)]
    if args.file:
        cases = [case for case in read_cases(args.file) if not case.is_open]
        jobs += [(case.kind, case.name, case.schema) for case in cases[:: args.every]]
    model = load_model_files(Settings(model_path=args.model_path))
    start = time.monotonic()
    counts = asyncio.run(measure(args.url, jobs, Prefixes(model), args.max_tokens, args.concurrency))
    print(f"\n{time.monotonic() - start:.0f} s, {args.max_tokens} tokens at most, {args.concurrency} at once\n")
    outcomes = ["refused", "ended", "not valid", "cut", "no prefix", "error"]
    print(f"| Kind | Sent | {' | '.join(outcomes)} | Tokens |\n|{'---|' * (3 + len(outcomes))}")
    for kind, count in counts.items():
        print(f"| {kind} | {count['sent']} | {' | '.join(str(count[one]) for one in outcomes)} | {count['tokens']} |")
    sys.exit(any(count["not valid"] or count["no prefix"] or count["error"] for count in counts.values()))


async def measure(
    url: str, jobs: list[tuple[str, str, Json]], prefixes: Prefixes, max_tokens: int, concurrency: int
) -> dict[str, collections.Counter[str]]:
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    room = asyncio.Semaphore(concurrency)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as http:
        async with http.get(f"{url}/v1/models") as response:
            model = (await response.json())["data"][0]["id"]

        async def one(kind: str, name: str, constraint: Json) -> None:
            body = {"model": model, "prompt": PROMPT, "max_tokens": max_tokens, "temperature": 1}
            body["seed"] = zlib.crc32(name.encode())
            if kind == "regex":
                body["regex"] = constraint
            else:
                body["response_format"] = {"type": "json_schema", "json_schema": {"name": "x", "schema": constraint}}
            async with room, http.post(f"{url}/v1/completions", json=body) as response:
                answer = await response.json()
            outcome = await asyncio.to_thread(judge, prefixes, kind, constraint, response.status, answer)
            counts[kind].update(["sent", outcome.split(":")[0]])
            counts[kind]["tokens"] += answer.get("usage", {}).get("completion_tokens", 0)
            if outcome not in ("ended", "cut"):
                print(f"{kind} {name}: {outcome}"[:800], flush=True)

        await asyncio.gather(*(one(*job) for job in jobs))
    return counts


def judge(prefixes: Prefixes, kind: str, constraint: Json, status: int, answer: Json) -> str:
    """What came of it, with the reason behind a colon."""
    if status == 400 and "model" not in answer["error"]["message"].split("'")[:2]:
        return f"refused: {answer['error']['message']}"
    if status != 200:
        return f"error: {status} {answer}"
    [choice] = answer["choices"]
    text = choice["text"]
    if choice["finish_reason"] == "length":
        is_prefix = (
            prefixes.has("regex", constraint, text)
            if kind == "regex"
            else prefixes.has("json_schema", json.dumps(constraint), text)
        )
        return "cut" if is_prefix else f"no prefix: {text!r} of {json.dumps(constraint)}"
    if kind == "regex":
        return "ended" if re.fullmatch(constraint, text) else f"not valid: {text!r} of {constraint}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        fault = fault_of(validator(constraint), text.encode())
    if fault is None or fault.startswith("not judged"):
        return "ended"
    return f"not valid: {fault} of {json.dumps(constraint)[:400]}"


if __name__ == "__main__":
    main()
