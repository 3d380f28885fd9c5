"""What hostile constraints do to a running server: how each is answered, and what others notice.

    python -m benchmarks.structured.hostile URL --launcher PID [--at-once 50] [--seconds 20]

First each kind of hostile constraint alone: status, message and time. Then readers stream free answers, for a while
alone and for a while beside `--at-once` hostile requests that are always under way: time to the first token and between
tokens, median and p99, before and during. The resident memory of the launcher's processes is looked at all along.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

Json = Any
READERS = 4
TOKENS = 32
MEBIBYTE = 2**20


def schema_body(source: str) -> bytes:
    """A request with a schema that is given as text, which need not be JSON."""
    return (
        b'{"model": "MODEL", "prompt": "x", "max_tokens": 4, "response_format": {"type": "json_schema", "json_schema": '
        b'{"name": "x", "schema": ' + source.encode("utf-8", "surrogateescape") + b"}}}"
    )


def regex_body(source: str) -> bytes:
    return json.dumps({"model": "MODEL", "prompt": "x", "max_tokens": 4, "regex": source}).encode()


def grammar_body(source: str) -> bytes:
    return json.dumps({"model": "MODEL", "prompt": "x", "max_tokens": 4, "ebnf": source}).encode()


def hostile() -> dict[str, bytes]:
    """Name -> body of a request."""
    doubling: Json = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(60)}
    doubling["d60"] = {"type": "string"}
    power = {"allOf": [{"anyOf": [{"minimum": n}, {"maxLength": n}]} for n in range(40)]}
    endless = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
    return {
        "schema nested 10,000 deep": schema_body('{"items":' * 10_000 + "{}" + "}" * 10_000),
        "enum of 1e6 values": schema_body(json.dumps({"enum": list(range(1_000_000))})),
        "enum of 15,000 texts": schema_body(json.dumps({"enum": [f"value {n} of an enum" for n in range(15_000)]})),
        "maxLength 1e9": schema_body('{"type": "string", "maxLength": 1000000000}'),
        "minLength 1e9": schema_body('{"type": "string", "minLength": 1000000000}'),
        "maxItems 1e9": schema_body('{"type": "array", "items": {"type": "null"}, "maxItems": 1000000000}'),
        "(a|a)*b": regex_body("(a|a)*b"),
        "(a|a)*b, 60 times in one another": regex_body("(" * 60 + "a|a" + ")*" * 60 + "b"),
        "(a*)*(a*)*b with a length": schema_body(json.dumps({"pattern": "^((a*)*(a*)*)*b$", "maxLength": 3000})),
        "states by the power": schema_body(json.dumps({"allOf": [{"pattern": "(a|b)*a(a|b){15}"}, {"pattern": "b$"}]})),
        "nested repeats": regex_body("((((a{1,999}){1,999}){1,999}){1,999}){1,999}"),
        "nested repeats, EBNF": grammar_body('root ::= ((("a"{1,9999}){1,9999}){1,9999}){1,9999}'),
        "key of 1 MB": schema_body(json.dumps({"properties": {"k" * 10**6: {"type": "null"}}})),
        "$ref to itself": schema_body('{"$ref": "#"}'),
        "endless recursion": schema_body(json.dumps(endless)),
        "references that double": schema_body(json.dumps({"$ref": "#/$defs/d0", "$defs": doubling})),
        "alternatives by the power": schema_body(json.dumps(power)),
        "schema of 5 MB": schema_body(
            json.dumps({"properties": {f"p{n}": {"type": "string"} for n in range(160_000)}})
        ),
        "schema of 50 MB": schema_body(json.dumps({"description": "x" * 50_000_000})),
        "invalid UTF-8": schema_body('{"const": "\udcff\udcfe"}'),
        "half a surrogate pair": schema_body('{"const": "\\ud800"}'),
        "unknown format": schema_body('{"type": "string", "format": "no-such-format", "maxLength": 3}'),
        "multipleOf 1e-300": schema_body('{"type": "number", "multipleOf": 1e-300}'),
        "number of 5,000 digits": schema_body('{"multipleOf": ' + "9" * 5000 + "}"),
    }


HEAVY = (
    "enum of 15,000 texts", "(a*)*(a*)*b with a length", "states by the power", "nested repeats",
    "nested repeats, EBNF", "references that double", "alternatives by the power", "schema nested 10,000 deep",
)  # fmt: skip
"""Those that reach a compiling process, to be sent many at a time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--launcher", type=int, required=True, help="process id of `sapwood serve`")
    parser.add_argument("--at-once", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each part of the measurement")
    parser.add_argument("--each-at-once", type=int, default=1, help="of the first part")
    parser.add_argument("--skip-each", action="store_true", help="only what others notice")
    args = parser.parse_args()
    asyncio.run(measure(args.url, args.launcher, args.at_once, args.seconds, args.skip_each, args.each_at_once))


async def measure(url: str, launcher: int, at_once: int, seconds: float, skip_each: bool, each_at_once: int) -> None:
    timeout = aiohttp.ClientTimeout(total=300)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(base_url=url, timeout=timeout, connector=connector) as http:
        async with http.get("/v1/models") as response:
            model = (await response.json())["data"][0]["id"]
        bodies = {name: body.replace(b"MODEL", model.encode(), 1) for name, body in hostile().items()}
        before = memory(launcher)
        watch = asyncio.create_task(peaks(launcher))
        if not skip_each:
            print("| Constraint | Status | Seconds | Answer |\n|---|---|---|---|")
            room = asyncio.Semaphore(each_at_once)

            async def one(name: str, body: bytes) -> None:
                async with room:
                    status, took, text = await ask(http, body)
                    print(f"| {name} | {status} | {took:.2f} | {text[:110]} |", flush=True)

            await asyncio.gather(*(one(*item) for item in bodies.items()))
        alone = await readers(http, model, seconds)
        loads = [asyncio.create_task(load(http, bodies, n)) for n in range(at_once)]
        await asyncio.sleep(2)
        during = await readers(http, model, seconds)
        for task in loads:
            task.cancel()
        counts = await asyncio.gather(*loads, return_exceptions=True)
        statuses = [status for load_ in LOADS for status in load_]
        LOADS.clear()
        assert all(isinstance(one, asyncio.CancelledError) for one in counts), counts
        print(f"\n{READERS} readers, {at_once} hostile requests at once, {len(statuses)} answered in that time:")
        print({status: statuses.count(status) for status in sorted(set(statuses))})
        print("\n| | Alone | Beside hostile requests |\n|---|---|---|")
        for name in ("TTFT", "ITL"):
            for label, share in (("p50", 0.5), ("p99", 0.99)):
                cells = [f"{quantile(times[name], share) * 1e3:.1f} ms" for times in (alone, during)]
                print(f"| {name} {label} | {' | '.join(cells)} |")
        print(f"| answers | {len(alone['TTFT'])} | {len(during['TTFT'])} |")
        await asyncio.sleep(10)
        watch.cancel()
        after = memory(launcher)
        print("\n| Process | MiB before | Peak | After |\n|---|---|---|---|")
        for name in sorted({*before, *PEAKS}):
            cells = [str(found.get(name, 0) // MEBIBYTE) for found in (before, PEAKS, after)]
            print(f"| {name} | {' | '.join(cells)} |")


PEAKS: dict[str, int] = {}
LOADS: list[list[int]] = []


async def ask(http: aiohttp.ClientSession, body: bytes) -> tuple[int, float, str]:
    """(status, seconds, the error's message or the text)."""
    start = time.monotonic()
    headers = {"Content-Type": "application/json"}
    try:
        async with http.post("/v1/completions", data=body, headers=headers) as response:
            answer = await response.json()
    except aiohttp.ClientError as error:  # the server may close a connection whose body it does not want
        return 0, time.monotonic() - start, repr(error)
    text = answer["error"]["message"] if "error" in answer else "accepted: " + repr(answer["choices"][0]["text"])
    return response.status, time.monotonic() - start, text


async def load(http: aiohttp.ClientSession, bodies: dict[str, bytes], number: int) -> None:
    """Hostile requests one after another, each a little different, since the same is not compiled again."""
    mine: list[int] = []
    LOADS.append(mine)
    count = 0
    while True:
        body = bodies[HEAVY[(number + count) % len(HEAVY)]]
        variant = b'"user": "%d", ' % (1000 * number + count)
        count += 1
        source = body.replace(b"{", b"{" + variant, 1)
        source = source.replace(b'"schema": {', b'"schema": {"x-n": %d, ' % (1000 * number + count), 1)
        status, _, _ = await ask(http, source.replace(b'"regex": "', b'"regex": "n%d|' % (1000 * number + count), 1))
        mine.append(status)


async def readers(http: aiohttp.ClientSession, model: str, seconds: float) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {"TTFT": [], "ITL": []}
    end = time.monotonic() + seconds

    async def read(number: int) -> None:
        count = 0
        while time.monotonic() < end:
            count += 1
            body = {
                "model": model, "prompt": f"Story {number} {count}: once there was", "max_tokens": TOKENS,
                "ignore_eos": True, "stream": True, "temperature": 0,
            }  # fmt: skip
            last = time.monotonic()
            name = "TTFT"
            async with http.post("/v1/completions", json=body) as response:
                async for line in response.content:
                    if line.startswith(b"data: {"):
                        now = time.monotonic()
                        times[name].append(now - last)
                        name, last = "ITL", now

    await asyncio.gather(*map(read, range(READERS)))
    return times


def quantile(values: list[float], share: float) -> float:
    return statistics.quantiles(values, n=1000)[int(share * 1000) - 1] if len(values) > 1 else float("nan")


async def peaks(launcher: int) -> None:
    while True:
        for name, size in memory(launcher).items():
            PEAKS[name] = max(PEAKS.get(name, 0), size)
        await asyncio.sleep(0.3)


def memory(launcher: int) -> dict[str, int]:
    """Resident bytes by process; all compiling processes and their server together."""
    sizes: dict[str, int] = {}
    for name, pid in processes(launcher):
        with contextlib.suppress(OSError):
            resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            sizes[name] = sizes.get(name, 0) + resident
    return sizes


def processes(launcher: int) -> Iterator[tuple[str, int]]:
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with contextlib.suppress(OSError):
            parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            names[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    for pid, command in names.items():
        ancestor = pid
        while ancestor in parents and ancestor != launcher:
            ancestor = parents[ancestor]
        if ancestor == launcher:
            yield _short(command), pid


def _short(command: str) -> str:
    if "multiprocessing" in command:
        return "compiling processes"
    found = [word for word in command.split() if word.startswith("services.")]
    return found[0].removeprefix("services.") if found else os.path.basename(command.split(" ")[0])


if __name__ == "__main__":
    main()
