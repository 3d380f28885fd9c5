"""What is sent to break the service: refused, or served, within the limits; nobody else notices."""

# ruff: noqa: E501 - a table

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator

import pytest

from services.tokenizer.config import Settings
from services.tokenizer.grammar.pool import PATIENCE
from services.tokenizer.grammar.service import GrammarService
from services.tokenizer.model_files import ModelFiles
from shared.errors import InvalidRequest, Overloaded
from shared.messages import Constraint
from shared.streams import Bus

TIMEOUT_S = 3.0
REFUSALS = (InvalidRequest, Overloaded)
"""The second where other processes leave a compiling one too little of the machine."""


def of(kind: str, source: str) -> Constraint:
    return Constraint(kind=kind, source=source, param="response_format")


def nested(depth: int) -> str:
    return '{"items":' * depth + "{}" + "}" * depth


def parts_nested(depth: int) -> object:
    return (
        "a" if depth == 0 else {"type": "repeat", "item": {"type": "choice", "items": [parts_nested(depth - 1), "b"]}}
    )


def repeats(item: object, depth: int) -> dict[str, object]:
    return {"type": "repeat", "item": item if depth == 1 else repeats(item, depth - 1), "min": 1, "max": 9999}


def chain(count: int) -> object:
    rules = {f"r{i}": {"type": "rule", "name": f"r{i + 1}"} for i in range(count)}
    return {"root": {"type": "rule", "name": "r0"}, "rules": {**rules, f"r{count}": "a"}}


SERVED_PARTS = ("parts loops", "parts repeats", "parts rules", "parts states")

HOSTILE = {
    "deep": of("json_schema", nested(10_000)),
    "deep list": of("json_schema", '{"enum":' + "[" * 50_000 + "]" * 50_000 + "}"),
    "million values": of("json_schema", json.dumps({"enum": list(range(100_000))})),
    "long": of("json_schema", json.dumps({"description": "x" * 2**21})),
    "min length": of("json_schema", '{"type":"string","minLength":1000000000}'),
    "min items": of("json_schema", '{"type":"array","minItems":1000000000}'),
    "circular": of("json_schema", '{"$ref":"#"}'),
    "endless": of("json_schema", '{"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]}'),
    "half a character": of("json_schema", '{"const":"\udc80"'),
    "power": of("json_schema", json.dumps({"allOf": [{"anyOf": [{"minimum": i}, {"maxLength": i}]} for i in range(40)]})),
    "one of": of("json_schema", json.dumps({"oneOf": [{"required": [f"a{i}"], "pattern": f"{i}"} for i in range(60)]})),
    "doubling": of(
        "json_schema",
        json.dumps(
            {
                "$defs": {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(60)}
                | {"d60": {"type": "string"}},
                "$ref": "#/$defs/d0",
            }
        ),
    ),
    "regex states": of("json_schema", json.dumps({"allOf": [{"pattern": "(a|b)*a(a|b){15}"}, {"pattern": "b(a|b){14}$"}]})),
    "regex repeats": of("regex", "((((a{1,999}){1,999}){1,999}){1,999}){1,999}"),
    "regex count": of("regex", "a{1000000000}"),
    "regex groups": of("regex", "(" * 5000 + "a" + ")" * 5000),
    "ebnf repeats": of("ebnf", 'root ::= (("a"{1,9999}){1,9999}){1,9999}'),
    "ebnf broken": of("ebnf", "root ::= ("),
    "ebnf zeros": of("ebnf", "root ::= \0"),
    "choices": of("choice", json.dumps([f"c{i}" for i in range(50_000)])),
    "long key": of("json_schema", json.dumps({"properties": {"k" * 10**6: {"type": "null"}}})),
    "tag": of("structural_tag", '{"format":' * 3000 + "{}" + "}" * 3000),
    "number": of("json_schema", '{"multipleOf":' + "9" * 5000 + "}"),
    "parts deep": of("grammar", '{"type":"sequence","items":[' * 5000 + '"a"' + "]}" * 5000),
    "parts in parts": of("grammar", json.dumps(parts_nested(40))),
    "parts repeats": of("grammar", json.dumps(repeats("a", 6))),
    "parts loops": of("grammar", json.dumps({"root": repeats({"type": "rule", "name": "r0"}, 2), "rules": {"r0": "a"}})),
    "parts choices": of("grammar", json.dumps({"type": "choice", "items": [f"c{i}" for i in range(50_000)]})),
    "parts rules": of("grammar", json.dumps(chain(5000))),
    "parts circular": of("grammar", json.dumps({"root": {"type": "rule", "name": "a"}, "rules": {"a": {"type": "rule", "name": "a"}}})),
    "parts states": of("grammar", json.dumps({"type": "sequence", "items": [{"type": "regex", "pattern": "(a|b)*a"}, *[{"type": "regex", "pattern": "(a|b)*"}] * 40]})),
    "parts stops": of("grammar", json.dumps({"type": "any_text", "excludes": [f"{i:05}" for i in range(9000)]})),
    "tiny number": of("json_schema", '{"type":"number","multipleOf":1e-300}'),
}  # fmt: skip


def children_memory() -> int:
    """Bytes resident in all processes of this one's session that compile."""
    total = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/statm") as statm, open(f"/proc/{pid}/stat") as stat:
                if int(stat.read().rpartition(")")[2].split()[3]) == os.getsid(0):
                    total += int(statm.read().split()[1]) * 4096
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


@pytest.fixture
async def grammars(bus: Bus, model: ModelFiles) -> AsyncIterator[GrammarService]:
    settings = Settings(
        model_path=".", grammar_processes=2, grammar_compile_timeout_s=TIMEOUT_S, grammar_compile_memory_mb=256
    )
    service = GrammarService(bus, model, settings)
    task = asyncio.create_task(service.run())
    await asyncio.gather(*(service.compile(of("regex", f"{word}+")) for word in "ab"))  # the processes are there
    yield service
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.parametrize("name", HOSTILE)
async def test_ends_within_the_limit(grammars: GrammarService, name: str) -> None:
    start = time.monotonic()
    [result] = await asyncio.gather(grammars.compile(HOSTILE[name]), return_exceptions=True)
    if isinstance(result, BaseException):
        assert isinstance(result, REFUSALS), result
        assert "'response_format'" in result.message or isinstance(result, Overloaded)
        assert len(result.message) < 1000
    else:
        assert name in (
            "doubling",
            "one of",
            "regex states",
            "regex repeats",
            "tiny number",
            "power",
            "ebnf repeats",
            *SERVED_PARTS,
        )
    assert time.monotonic() - start < PATIENCE * TIMEOUT_S + 2  # TIMEOUT_S where nothing else runs
    assert (await grammars.compile(of("choice", '["after"]'))).key


async def test_fifty_at_once_take_no_memory_and_do_not_hold_up_the_event_loop(grammars: GrammarService) -> None:
    before = children_memory()
    busiest = longest = 0.0

    async def watch() -> None:
        nonlocal busiest, longest
        while True:
            used, start = time.process_time(), time.monotonic()
            await asyncio.sleep(0.005)
            busiest = max(busiest, time.process_time() - used)
            longest = max(longest, time.monotonic() - start)

    watcher = asyncio.create_task(watch())
    constraints = [
        of(one.kind, one.source + " " * n) for n in range(3) for one in HOSTILE.values() if "regex" not in one.kind
    ]
    results = await asyncio.gather(*map(grammars.compile, constraints[:50]), return_exceptions=True)
    watcher.cancel()
    assert all(not isinstance(result, Exception) or isinstance(result, REFUSALS) for result in results), results
    assert busiest < 0.25  # of this process's own time, which a busy machine does not add to
    assert longest < TIMEOUT_S - 0.5  # nor does it wait for one that compiles
    assert children_memory() - before < 512 * 2**20
