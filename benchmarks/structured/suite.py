"""The official JSON-Schema-Test-Suite against the grammars made of its schemas, keyword by keyword.

    python -m benchmarks.structured.suite FOLDER/json [--drafts draft2020-12 ...] [--verbose]

FOLDER is where the source package of `jsonschema` was unpacked, which carries the suite. Each schema is refused, with a
pointer to what is at fault, or becomes a grammar. No instance that is not valid may then be accepted, in whatever order
its properties stand. Of the valid ones as many are accepted as the grammar's subset has (see
`services.tokenizer.grammar.schema`): the fixed white space is given to them, and every order of their properties is
tried, but a schema that names a keyword of one type alone means that type, one that names properties means no others,
and items that must differ come in order. The table counts them by keyword; the exit status is that of the invalid
instances that were accepted.
"""

import argparse
import collections
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import xgrammar

from services.tokenizer.grammar.compile import to_ebnf
from services.tokenizer.grammar.errors import Unenforceable

Json = Any
MAX_CHARACTERS = 8192 * 16
MAX_ORDERS = 120
DRAFTS = {
    "draft4": "http://json-schema.org/draft-04/schema#",
    "draft6": "http://json-schema.org/draft-06/schema#",
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft2019-09": "https://json-schema.org/draft/2019-09/schema",
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
}


class Count(msgspec.Struct):
    """Of one keyword. left_out: valid instances that the grammar does not have; wrong: invalid ones that it has."""

    groups: int = 0
    refused: int = 0
    unplaced: int = 0
    valid: int = 0
    left_out: int = 0
    invalid: int = 0
    wrong: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--drafts", nargs="*", default=list(DRAFTS), choices=list(DRAFTS))
    parser.add_argument("--verbose", action="store_true", help="tell each refusal and each valid instance left out")
    args = parser.parse_args()
    wrong = 0
    for draft in args.drafts:
        start = time.monotonic()
        counts: dict[str, Count] = collections.defaultdict(Count)
        for keyword, group in groups(args.folder / "tests" / draft, DRAFTS[draft]):
            judge(counts[keyword], keyword, group, args.verbose)
        print(f"\n{draft}, {time.monotonic() - start:.0f} s\n")
        print(table(counts))
        wrong += sum(count.wrong for count in counts.values())
    sys.exit(bool(wrong))


def groups(folder: Path, draft: str) -> Iterator[tuple[str, Json]]:
    """(keyword, group of tests). A schema that does not name its draft, as those of older drafts do not, gets the name:
    it is what a validator is told."""
    for path in sorted(folder.glob("**/*.json")):
        keyword = str(path.relative_to(folder).with_suffix(""))
        for group in json.loads(path.read_text()):
            if isinstance(group["schema"], dict):
                group["schema"] = {"$schema": draft, **group["schema"]}
            yield keyword, group


def judge(count: Count, keyword: str, group: Json, verbose: bool) -> None:
    count.groups += 1
    where = f"{keyword}: {group['description']}"
    try:
        source = to_ebnf("json_schema", json.dumps(group["schema"]), MAX_CHARACTERS)
    except Unenforceable as error:
        count.refused += 1
        count.unplaced += error.pointer is None
        if verbose:
            takes = any(test["valid"] for test in group["tests"])
            print(f"refused {'' if takes else '(nothing is valid) '}{where}: {error}")
        return
    grammar = compiled(source)
    for test in group["tests"]:
        is_accepted = any(matches(grammar, text) for text in spellings(test["data"]))
        if test["valid"]:
            count.valid += 1
            count.left_out += not is_accepted
            if verbose and not is_accepted:
                print(f"left out {where}: {test['description']}: {json.dumps(test['data'])[:100]}")
        else:
            count.invalid += 1
            count.wrong += is_accepted
            if is_accepted:
                schema = json.dumps(group["schema"])[:300]
                print(f"WRONG {where}: {test['description']}: {json.dumps(test['data'])[:100]} of {schema}")


def compiled(source: str) -> xgrammar.CompiledGrammar:
    tokens = [bytes([byte]) for byte in range(256)] + [b"</s>"]
    info = xgrammar.TokenizerInfo(tokens, xgrammar.VocabType.RAW, stop_token_ids=[256])
    return xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False).compile_grammar(
        xgrammar.Grammar.from_ebnf(source)
    )


def matches(grammar: xgrammar.CompiledGrammar, text: str) -> bool:
    matcher = xgrammar.GrammarMatcher(grammar, terminate_without_stop_token=True)
    try:
        data = text.encode()
    except UnicodeEncodeError:
        return False
    return bool(matcher.accept_string(data) and matcher.is_terminated())


def spellings(value: Json) -> Iterator[str]:
    """The value as an answer would have it, with its properties in every order (or many); texts with escapes too."""
    for one in itertools.islice(orders(value), MAX_ORDERS):
        yield json.dumps(one, ensure_ascii=False)
    yield json.dumps(value)


def orders(value: Json) -> Iterator[Json]:
    if isinstance(value, dict):
        for names in itertools.permutations(value):
            for inner in itertools.product(*(list(itertools.islice(orders(value[name]), 6)) for name in names)):
                yield dict(zip(names, inner, strict=True))
    elif isinstance(value, list):
        yield from map(list, itertools.product(*(list(itertools.islice(orders(one), 6)) for one in value)))
    else:
        yield value


def table(counts: dict[str, Count]) -> str:
    total = Count()
    columns = "Keyword|Schemas|Refused|Valid instances|Of those in the grammar|Invalid instances|Accepted wrongly"
    lines = [f"| {columns.replace('|', ' | ')} |", "|" + "---|" * 7]
    for name, count in [*counts.items(), ("all", total)]:
        refused = f"{count.refused}{f' ({count.unplaced} without a pointer)' if count.unplaced else ''}"
        cells = (name, count.groups, refused, count.valid, count.valid - count.left_out, count.invalid, count.wrong)
        lines.append(f"| {' | '.join(map(str, cells))} |")
        for field in count.__struct_fields__:
            setattr(total, field, getattr(total, field) + getattr(count, field))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
