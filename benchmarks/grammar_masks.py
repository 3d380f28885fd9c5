"""Times what a constrained row costs the host: compiling its grammar, filling masks, taking tokens, looking ahead.

    python -m benchmarks.grammar_masks --model-path DIR [--schemas FILE] [--rows 128] [--only NAME ...]

Walks at random through the grammar of each schema, as a worker does, and prints a line for it: milliseconds to compile
(at first, and with a compiler that has seen its rules), kB of source and of the serialized form, MB in memory,
microseconds of a mask (mean, p50, p99, worst), of taking a token, and of looking ahead for a forced run, and the share
of tokens that are forced. At the end it fills the masks of many rows together, as a step does. Times are of the thread,
so that other load counts little. --schemas: JSON, an object from name to schema; by default, some of usual kinds.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from services.gpu_worker.grammar.guide import Guide
from services.gpu_worker.grammar.masks import MaskPool
from services.gpu_worker.grammar.matcher import empty_mask, empty_masks
from services.gpu_worker.grammar.vocabulary import Vocabulary, load_vocabulary
from services.gpu_worker.grammar.xgrammar_engine import XGrammarCompiled
from services.tokenizer.grammar.compile import to_source
from shared.grammar import caching_compiler, compile_source

MAX_CHARACTERS = 8192 * 16
WALKS = 20
MAX_TOKENS = 128

TEXT = {"type": "string"}
SHORT_TEXT = {"type": "string", "maxLength": 24}


def record(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMAS: dict[str, Any] = {
    "city": record(
        {
            "city": SHORT_TEXT,
            "country": SHORT_TEXT,
            "population": {"type": "integer"},
            "landmarks": {
                "type": "array",
                "minItems": 2,
                "maxItems": 3,
                "items": record({"name": {"type": "string", "maxLength": 16}, "year_built": {"type": "integer"}}),
            },
            "climate": {"enum": ["tropical", "dry", "temperate", "continental", "polar"]},
        }
    ),
    "person": record({"name": TEXT, "age": {"type": "integer", "minimum": 0, "maximum": 130}, "tags": {"items": TEXT}}),
    "anything": {"type": "object"},
    "patterns": record(
        {
            "id": {"type": "string", "pattern": "^[a-z][a-z0-9-]{2,30}$"},
            "sku": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4,8}$"},
            "semver": {"type": "string", "pattern": r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)$"},
        }
    ),
    "formats": record(
        {name: {"type": "string", "format": name} for name in ("date-time", "email", "uuid", "uri", "ipv4")}
    ),
    "long texts": record({"title": {"type": "string", "minLength": 1, "maxLength": 100}, "body": {"maxLength": 500}}),
    "numbers": record({"x": {"type": "number", "minimum": -180, "maximum": 180}, "n": {"type": "number"}}),
    "union": {"anyOf": [record({"kind": {"const": kind}, kind: SHORT_TEXT}) for kind in ("move", "say", "wait")]},
}


@dataclass
class Times:
    """Seconds of each call."""

    fill: list[float] = field(default_factory=list)
    accept: list[float] = field(default_factory=list)
    look: list[float] = field(default_factory=list)
    num_sampled: int = 0
    num_forced: int = 0


def allowed(guide: Guide, vocab_size: int) -> npt.NDArray[np.bool_]:
    return np.unpackbits(guide.mask.view(np.uint8), bitorder="little")[:vocab_size].astype(bool)


def walk(
    guide: Guide, stops: tuple[int, ...], draw: random.Random, times: Times, closing: npt.NDArray[np.bool_]
) -> None:
    """An answer of at most MAX_TOKENS; `closing` tells the tokens that lead towards its end."""
    haste = draw.choice([0.0, 0.05, 0.2])
    tokens: list[int] = []
    while len(tokens) < MAX_TOKENS:
        started = time.thread_time()
        run = guide.run(tokens, MAX_TOKENS - len(tokens))
        ends = guide.must_end()
        times.look.append(time.thread_time() - started)
        tokens += run
        times.num_forced += len(run)
        if ends or len(tokens) >= MAX_TOKENS:
            return
        guide.is_filled = False
        started = time.thread_time()
        guide.fill()
        times.fill.append(time.thread_time() - started)
        may_follow = allowed(guide, len(closing))
        choices, hurried = may_follow.nonzero()[0], (may_follow & closing).nonzero()[0]
        token = int(draw.choice(hurried if len(hurried) and draw.random() < haste else choices))
        started = time.thread_time()
        is_accepted = guide.accept(token)
        times.accept.append(time.thread_time() - started)
        assert is_accepted, "a mask allows what its grammar does not"
        if token in stops:
            return
        tokens.append(token)
        times.num_sampled += 1


def compiled_twice(vocabulary: Vocabulary, stops: tuple[int, ...], source: str) -> tuple[Any, float, float]:
    """(grammar, seconds at first, seconds with its rules known)."""
    compiler = caching_compiler(vocabulary.info(stops))
    spent = []
    for extra in ("", 'never_used ::= "x"\n'):  # the compiler would know the same grammar whole
        started = time.thread_time()
        grammar = compile_source(compiler, source + extra)
        spent.append(time.thread_time() - started)
    return grammar, spent[0], spent[1]


def microseconds(seconds: Sequence[float]) -> str:
    return f"{np.mean(seconds) * 1e6:7.1f} " + " ".join(
        f"{np.percentile(seconds, percent) * 1e6:8.1f}" for percent in (50, 99, 100)
    )


def measure(name: str, schema: Any, vocabulary: Vocabulary, stops: tuple[int, ...]) -> XGrammarCompiled:
    source = to_source("json_schema", json.dumps(schema), MAX_CHARACTERS)
    grammar, first, again = compiled_twice(vocabulary, stops, source)
    compiled = XGrammarCompiled(grammar, vocabulary)
    closing = np.array([any(char in text for char in b'"]}') for text in vocabulary.token_bytes])
    draw, times = random.Random(1), Times()
    for _ in range(WALKS):
        guide = Guide(compiled, stops, vocabulary, vocabulary.vocab_size, empty_mask(vocabulary.vocab_size))
        walk(guide, stops, draw, times, closing)
    share = times.num_forced / max(times.num_forced + times.num_sampled, 1)
    print(
        f"{name[:22]:22} {source.count('::='):5} {first * 1e3:8.1f} {again * 1e3:7.1f} {len(source) / 1e3:7.1f}"
        f" {len(grammar.serialize_json()) / 1e3:8.0f} {compiled.num_bytes / 1e6:6.2f} | {microseconds(times.fill)} |"
        f" {np.mean(times.accept) * 1e6:6.1f} {np.mean(times.look) * 1e6:6.1f} {share:6.0%}",
        flush=True,
    )
    return compiled


def fill_together(compiled: XGrammarCompiled, vocabulary: Vocabulary, stops: tuple[int, ...], num_rows: int) -> None:
    """Rows in different places of one grammar, as in a step."""
    pool = MaskPool(empty_masks(num_rows, vocabulary.vocab_size))
    draw = random.Random(2)
    guides = []
    for seat in range(num_rows):
        guide = Guide(compiled, stops, None, vocabulary.vocab_size, pool.row(seat))
        for _ in range(draw.randrange(1, 40)):
            guide.fill()
            token = int(draw.choice(allowed(guide, vocabulary.vocab_size).nonzero()[0]))
            if token in stops:
                break
            guide.accept(token)
        guides.append((seat, guide))
    spent = []
    for _ in range(50):
        for _, guide in guides:
            guide.is_filled = False
        started = time.perf_counter()
        pool.start(guides).result()
        spent.append(time.perf_counter() - started)
    print(f"{num_rows} rows together: {min(spent) * 1e3:.2f} ms at best, {np.median(spent) * 1e3:.2f} ms as a rule")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--vocab-size", type=int, default=0, help="width of the logits; default: that of config.json")
    parser.add_argument("--schemas", type=Path)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--only", nargs="*", default=[])
    arguments = parser.parse_args()
    config = json.loads((Path(arguments.model_path) / "config.json").read_text())
    vocabulary = load_vocabulary(arguments.model_path, arguments.vocab_size or config["vocab_size"])
    stop = config.get("eos_token_id")
    stops: tuple[int, ...] = tuple(stop) if isinstance(stop, list) else (stop,)
    schemas = json.loads(arguments.schemas.read_text()) if arguments.schemas else SCHEMAS
    print(f"xgrammar {version('xgrammar')}, {vocabulary.vocab_size} tokens")
    print(
        f"{'schema':22} rules  compile   again  source serial'd memory |    fill      p50      p99    worst | accept "
        " ahead forced"
    )
    measured = [
        measure(name, schema, vocabulary, stops)
        for name, schema in schemas.items()
        if not arguments.only or name in arguments.only
    ]
    fill_together(measured[0], vocabulary, stops, arguments.rows)


if __name__ == "__main__":
    main()
