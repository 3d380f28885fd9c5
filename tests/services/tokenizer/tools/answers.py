"""Answers with tool calls, made up at random in every format that models write."""

import codecs
import itertools
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass

from services.tokenizer.tools import deepseek, hermes, json_calls, mistral, pythonic
from services.tokenizer.tools.reader import Piece
from shared.messages import Channel

NAMES = ["get_weather", "f", "search.web", "book-flight", "add_2"]

Call = tuple[str, str]
"""(name, arguments' JSON)"""

NASTY = [
    "", "Zürich", "你好", "🎉🎉", "a\nb\tc", '"', "'", "\\", "\\n", "}", "{", "]", "[", ")", "(", ",", "=",
    "</tool_call>", "<tool_call>", "[TOOL_CALLS]", "[ARGS]", "```", "<｜tool▁call▁end｜>", "<|python_tag|>", "; {",
    "<think>", "\u2028", "\x00", "é" * 5, '{"name": "f", "arguments": {}}',
]  # fmt: skip


def a_value(rng: random.Random, depth: int = 2) -> object:
    kind = rng.randrange(8 if depth else 6)
    match kind:
        case 0:
            return rng.choice(["", "x", "two words", *NASTY])
        case 1:
            return "".join(rng.choice(NASTY) for _ in range(rng.randrange(4)))
        case 2:
            return rng.choice([0, 1, -7, 2**63, 10**20, 1.5, -0.25, 1e-7, 1e300])
        case 3:
            return rng.choice([True, False, None])
        case 4 | 5:
            return rng.choice(["a", "b", "long " * 8])
        case 6:
            return [a_value(rng, depth - 1) for _ in range(rng.randrange(4))]
        case _:
            return {rng.choice(["k", "ключ", *NASTY]): a_value(rng, depth - 1) for _ in range(rng.randrange(4))}


def some_arguments(rng: random.Random) -> dict[str, object]:
    return {key: a_value(rng) for key in rng.sample(["a", "city", "n_days", "options"], rng.randrange(4))}


def as_json(rng: random.Random, value: object) -> str:
    """JSON as a model might write it: spaced in some way, escaped or not."""
    separators, indent = rng.choice([((", ", ": "), None), ((",", ":"), None), ((",", ": "), 1)])
    return json.dumps(value, ensure_ascii=rng.random() < 0.3, separators=separators, indent=indent)


@dataclass(frozen=True)
class Answer:
    """An answer as a model writes it, and what stands in it."""

    text: str
    calls: list[Call]
    content: str


def call_object(rng: random.Random, name: str, arguments: str, key: str = "arguments") -> str:
    pairs = [f'"name": "{name}"', f'"{key}": {arguments}']
    if rng.random() < 0.3:
        pairs.reverse()
    space = rng.choice(["", " ", "\n"])
    return f"{{{space}{f',{space}'.join(pairs)}{space}}}"


def _hermes(rng: random.Random, calls: list[Call]) -> str:
    objects = [call_object(rng, *call) for call in calls]
    if rng.random() < 0.2:
        objects = [f"[{', '.join(objects)}]"]
    elif rng.random() < 0.2:
        objects = [rng.choice(["", "\n", ",\n", "}\n"]).join(objects)]
    objects = [rng.choice([one, one, one, one + "}", one[:-1]]) for one in objects]
    return rng.choice(["\n", "", "\n\n"]).join(f"{hermes.BEGIN}\n{one}\n{hermes.END}" for one in objects)


def _json(rng: random.Random, calls: list[Call]) -> str:
    objects = [call_object(rng, *call, key=rng.choice(["arguments", "parameters"])) for call in calls]
    return f"[{', '.join(objects)}]" if rng.random() < 0.5 else "\n".join(objects)


def _llama(rng: random.Random, calls: list[Call]) -> str:
    tag = json_calls.PYTHON_TAG if rng.random() < 0.5 else ""
    return tag + rng.choice(["; ", ";", "\n"]).join(call_object(rng, *call, key="parameters") for call in calls)


def _mistral(rng: random.Random, calls: list[Call]) -> str:
    return f"{mistral.TOOL_CALLS}[{', '.join(call_object(rng, *call) for call in calls)}]"


def _mistral_args(rng: random.Random, calls: list[Call]) -> str:
    between = rng.choice([mistral.ARGS, f"{mistral.CALL_ID}aB3dE6gH9{mistral.ARGS}", ""])
    return "".join(f"{mistral.TOOL_CALLS}{name}{between}{arguments}" for name, arguments in calls)


def _deepseek_v3(rng: random.Random, calls: list[Call]) -> str:
    inner = "\n".join(
        f"{deepseek.CALL_BEGIN}function{deepseek.SEPARATOR}{name}\n```json\n{arguments}\n```{deepseek.CALL_END}"
        for name, arguments in calls
    )
    return f"{deepseek.CALLS_BEGIN}{inner}{deepseek.CALLS_END}"


def _deepseek_v3_1(rng: random.Random, calls: list[Call]) -> str:
    inner = "".join(
        f"{deepseek.CALL_BEGIN}{name}{deepseek.SEPARATOR}{arguments}{deepseek.CALL_END}" for name, arguments in calls
    )
    return f"{deepseek.CALLS_BEGIN}{inner}{deepseek.CALLS_END}"


WRITERS = {
    "hermes": _hermes,
    "json": _json,
    "llama3_json": _llama,
    "mistral": _mistral,
    "mistral_args": _mistral_args,
    "deepseek_v3": _deepseek_v3,
    "deepseek_v3_1": _deepseek_v3_1,
}


def a_pythonic_answer(rng: random.Random) -> Answer:
    written, calls = [], []
    for name in rng.choices(NAMES, k=rng.randint(1, 3)):
        arguments = some_arguments(rng)
        comma = rng.choice([", ", ","])
        written.append(f"{name}({comma.join(f'{key}={value!r}' for key, value in arguments.items())})")
        calls.append((name, json.dumps(arguments, ensure_ascii=False)))
    text = f"[{', '.join(written)}]"
    if rng.random() < 0.3:
        text = f"{pythonic.START}{text}{pythonic.END}"
    return _with_text(rng, text, calls)


def an_answer(rng: random.Random, form: str) -> Answer:
    """One to three calls with text around them or none."""
    if form == "pythonic":
        return a_pythonic_answer(rng)
    calls = [(name, as_json(rng, some_arguments(rng))) for name in rng.choices(NAMES, k=rng.randint(1, 3))]
    return _with_text(rng, WRITERS[form](rng, calls), calls)


def _with_text(rng: random.Random, written: str, calls: list[Call]) -> Answer:
    before = rng.choice(["", "", "Let me see.", "Voilà 🎉: one < two"])
    after = rng.choice(["", "", "Done.", "That was [1] {all} 你好"])
    return Answer(before + rng.choice(["", "\n", "  "]) + written + (f"\n{after}" if after else ""), calls,
                  before + (f"\n{after}" if after else ""))  # fmt: skip


def split_bytes(text: str, *borders: int) -> list[str]:
    """The text as it comes when its UTF-8 bytes come in pieces: a character comes with its last byte."""
    whole, decoder = text.encode(), codecs.getincrementaldecoder("utf-8")()
    edges = [0, *borders, len(whole)]
    return [decoder.decode(whole[start:end]) for start, end in itertools.pairwise(edges)]


def calls_of(pieces: Iterable[Piece]) -> list[Call]:
    """(name, arguments) of each call, joined from its pieces."""
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for piece in pieces:
        if piece.channel is Channel.CALL_NAME:
            assert piece.call == len(names)
            names[piece.call] = piece.text
            arguments[piece.call] = ""
        elif piece.channel is Channel.CALL_ARGUMENTS:
            arguments[piece.call] += piece.text
    return [(name, arguments[call]) for call, name in names.items()]


def text_of(pieces: Iterable[Piece], channel: Channel = Channel.CONTENT) -> str:
    return "".join(piece.text for piece in pieces if piece.channel is channel)
