"""Which schemas of a file are accepted, by the processes and with the limits of a tokenizer; and answers to them.

    python -m benchmarks.structured.coverage schemas.jsonl --model-path DIR [--walks 3] [--kinds NAME ...]

The file has lines of JSON: kind, name, schema, is_open (`gather.py` writes such). Each schema is compiled as one that
a request brings, and what is refused is told with its reason. To each that is accepted, answers are drawn at random
from the masks with the model's vocabulary, without the model; those that end by themselves must be valid to
`jsonschema`. A table by kind closes the report.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import random
import re
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import jsonschema._keywords
import jsonschema._utils
import msgspec
import numpy as np
import regex
import xgrammar
from jsonschema.validators import validator_for

from services.tokenizer.config import Settings
from services.tokenizer.grammar.pool import CompilePool
from services.tokenizer.grammar.protocol import Compiled, Job, Setup
from services.tokenizer.grammar.service import MEBIBYTE
from services.tokenizer.model_files import ModelFiles, load_model_files
from shared.errors import InternalError, Overloaded
from shared.grammar import MAX_SOURCE_BYTES, caching_compiler, compile_source, decode, tokenizer_info

Json = Any

for module in (jsonschema._keywords, jsonschema._utils):
    module.re = regex  # schemas ask for classes like \\p{L}, which Python's own module does not have


class Case(msgspec.Struct):
    """A line of the file, and what came of it. refusal: why, if it was. ended: answers that ended by themselves."""

    kind: str
    name: str
    schema: Json
    is_open: bool = False
    refusal: str | None = None
    compile_s: float = 0.0
    answers: int = 0
    ended: int = 0
    invalid: list[str] = msgspec.field(default_factory=list)


def read_cases(path: Path) -> list[Case]:
    return [msgspec.json.decode(line, type=Case) for line in path.read_bytes().splitlines()]


def draft_of(schema: Json) -> Any:
    """The class of validators of the draft that the schema names, or of 2020-12. OpenAPI's schemas name none, and the
    older ones have draft 4's booleans for bounds."""
    text = json.dumps(schema)
    if '"$schema"' not in text and re.search(r'"exclusiveM(in|ax)imum": (true|false)', text):
        return jsonschema.Draft4Validator
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return validator_for(schema, jsonschema.Draft202012Validator)


def validator(schema: Json) -> Any:
    """Nothing is fetched from anywhere."""
    return draft_of(schema)(schema)


def is_broken(case: Case) -> bool:
    """Whether a refused schema is none: it refers to what it does not have, or its own draft does not allow it."""
    if case.refusal is None or case.is_open:
        return False
    if "which is not in the schema" in case.refusal:
        return True
    try:
        draft_of(case.schema).check_schema(case.schema)
    except jsonschema.SchemaError:
        return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--kinds", nargs="*")
    parser.add_argument("--walks", type=int, default=3, help="answers to each schema; 0: none is drawn")
    parser.add_argument("--max-tokens", type=int, default=400, help="of an answer")
    parser.add_argument("--every", type=int, default=1, help="take one schema of so many")
    parser.add_argument("--report", type=Path, help="outcomes as lines of JSON")
    args = parser.parse_args()
    cases = [case for case in read_cases(args.file) if not args.kinds or case.kind in args.kinds][:: args.every]
    asyncio.run(measure(cases, args.model_path, args.walks, args.max_tokens))
    if args.report:
        plain = [{name: getattr(case, name) for name in case.__struct_fields__ if name != "schema"} for case in cases]
        args.report.write_text("".join(json.dumps(one) + "\n" for one in plain))
    sys.exit(summary(cases))


async def measure(cases: list[Case], model_path: str, walks: int, max_tokens: int) -> None:
    settings = Settings(model_path=model_path)
    model = load_model_files(settings)
    pool = CompilePool(setup_of(model, settings), settings.grammar_processes)
    task = asyncio.create_task(pool.run())
    walker = Walker(model)
    try:
        room = asyncio.Semaphore(2 * settings.grammar_processes)

        async def one(case: Case) -> None:
            async with room:
                source = await compiled_source(pool, case)
                if case.refusal is not None:
                    print(told(case), flush=True)
                if source is not None and walks:
                    await asyncio.to_thread(walk, walker, case, source, walks, max_tokens)

        await asyncio.gather(*map(one, cases))
    finally:
        task.cancel()
        await asyncio.wait([task])


def setup_of(model: ModelFiles, settings: Settings) -> Setup:
    """As `GrammarService` makes it."""
    longest_token = max(map(len, model.backend.get_vocab(with_added_tokens=True)))
    return Setup(
        tokenizer=model.backend.to_str().encode(),
        vocab_size=model.vocab_size,
        stop_token_ids=list(model.eos_token_ids),
        memory_bytes=settings.grammar_compile_memory_mb * MEBIBYTE,
        timeout_s=settings.grammar_compile_timeout_s,
        max_characters=model.max_model_len * longest_token,
    )


async def compiled_source(pool: CompilePool, case: Case) -> str | None:
    """The grammar as a worker gets it; None: refused."""
    source = json.dumps(case.schema)
    if len(source) > MAX_SOURCE_BYTES:
        case.refusal = "is too long"
        return None
    start = time.monotonic()
    answer = None
    while answer is None:
        with contextlib.suppress(Overloaded, InternalError):  # others on this machine have their turn
            answer = await pool.compile(Job(kind="json_schema", source=source))
    case.compile_s = time.monotonic() - start
    if not isinstance(answer, Compiled):
        case.refusal = answer.message
        return None
    return decode(answer.grammar).source


class Walker:
    """Draws answers at random from the masks of a grammar, hurrying towards the end."""

    def __init__(self, model: ModelFiles) -> None:
        self.info = tokenizer_info(model.backend, model.vocab_size, list(model.eos_token_ids))
        self.compiler = caching_compiler(self.info)
        self.texts = self.info.decoded_vocab
        self.stops = set(self.info.stop_token_ids)
        self._closing = np.array([text.strip() in (b'"', b"}", b"]", b'"}', b'"]', b"0") for text in self.texts])

    def answers(self, grammar: xgrammar.CompiledGrammar, count: int, max_tokens: int) -> Iterator[tuple[bytes, bool]]:
        """(text, whether it ended by itself)."""
        for seed in range(count):
            yield self._walk(xgrammar.GrammarMatcher(grammar), random.Random(seed), max_tokens)

    def _walk(self, matcher: xgrammar.GrammarMatcher, draw: random.Random, max_tokens: int) -> tuple[bytes, bool]:
        mask = xgrammar.allocate_token_bitmask(1, self.info.vocab_size)
        haste = draw.choice([0.3, 0.6, 0.9])
        out = b""
        for _ in range(max_tokens):
            matcher.fill_next_token_bitmask(mask)
            bits = np.unpackbits(mask.numpy().view(np.uint8), bitorder="little")[: self.info.vocab_size].astype(bool)
            allowed = bits.nonzero()[0]
            assert len(allowed), f"nothing may follow {out[-200:]!r}"
            closing = (bits & self._closing).nonzero()[0]
            ends = [stop for stop in self.stops if bits[stop]]
            hurry = draw.random() < haste
            token = ends[0] if ends and hurry else int(draw.choice(closing if len(closing) and hurry else allowed))
            assert matcher.accept_token(token)
            if token in self.stops:
                return out, True
            out += self.texts[token]
        return out, False


def walk(walker: Walker, case: Case, source: str, walks: int, max_tokens: int) -> None:
    check = validator(case.schema)
    grammar = compile_source(walker.compiler, source)
    for out, is_whole in walker.answers(grammar, walks, max_tokens):
        case.answers += 1
        if is_whole:
            case.ended += 1
            fault = fault_of(check, out)
            if fault is not None:
                case.invalid.append(fault)


def fault_of(check: Any, answer: bytes) -> str | None:
    """Why an answer is not valid. Errors of the validator itself over the schema are told as such."""
    try:
        error = jsonschema.exceptions.best_match(check.iter_errors(json.loads(answer.decode())))
    except Exception as failure:  # a schema that the validator cannot read says nothing about the answer
        return f"not judged: {failure!r}"[:200]
    return None if error is None else f"{error.message[:200]} in {answer.decode()[:300]}"


def told(case: Case) -> str:
    where = f"{case.kind} {case.name}{' (open)' if case.is_open else ' (broken)' if is_broken(case) else ''}"
    return f"refused {where} in {case.compile_s:.1f} s: {case.refusal}"


def summary(cases: list[Case]) -> int:
    """Prints answers that are not valid, and the table; returns how many answers are not valid."""
    for case in cases:
        for fault in case.invalid:
            print(f"INVALID {case.kind} {case.name}: {fault}")
    rows = collections.defaultdict(list)
    for case in cases:
        rows[case.kind].append(case)
        rows["all"].append(case)
    columns = "Kind|Schemas|Refer elsewhere|Broken|Accepted of the others|Seconds, median and worst|Answers|Ended|Valid"
    print(f"\n| {columns.replace('|', ' | ')} |\n|{'---|' * 9}")
    for kind, found in rows.items():
        is_open = sum(case.is_open for case in found)
        own = [case for case in found if not case.is_open and not is_broken(case)]
        taken = [case for case in own if case.refusal is None]
        times = sorted(case.compile_s for case in found) or [0.0]
        ended = sum(case.ended for case in found)
        faults = [fault for case in found for fault in case.invalid]
        unjudged = sum(fault.startswith("not judged") for fault in faults)
        print(
            f"| {kind} | {len(found)} | {is_open} | {len(found) - len(own) - is_open} "
            f"| {len(taken)} ({len(taken) / max(len(own), 1):.1%}) "
            f"| {times[len(times) // 2]:.2f}, {times[-1]:.1f} | {sum(case.answers for case in found)} | {ended} "
            f"| {ended - len(faults)}{f' ({unjudged} not judged)' if unjudged else ''} |"
        )
    return sum(not fault.startswith("not judged") for case in cases for fault in case.invalid)


if __name__ == "__main__":
    main()
