"""A constraint of any kind in a form that xgrammar reads. Runs in a compiling process."""

import json

import msgspec

from services.tokenizer.grammar import ebnf
from services.tokenizer.grammar.automaton import automaton
from services.tokenizer.grammar.composed import composed
from services.tokenizer.grammar.errors import Unenforceable
from services.tokenizer.grammar.limits import MAX_CHOICES
from services.tokenizer.grammar.pattern import NOTHING, has_look
from services.tokenizer.grammar.regex import parse_whole
from services.tokenizer.grammar.rules import Rules, one_of_texts, text_expression
from services.tokenizer.grammar.schema.document import load
from services.tokenizer.grammar.schema.emit import emit
from services.tokenizer.grammar.structural_tag import prepared
from shared.grammar import LARK_MARK

ANY_OBJECT = '{"type": "object"}'


def to_source(kind: str, source: str, max_characters: int) -> str:
    """A constraint of any kind as `shared.grammar.compile_source` reads it. max_characters: what an answer can have at
    most. Raises Unenforceable."""
    match kind:
        case "structural_tag":
            return json.dumps(prepared(load(source), max_characters))
        case "lark":
            return LARK_MARK + ebnf.checked_lark(source)
    return to_ebnf(kind, source, max_characters)


def to_ebnf(kind: str, source: str, max_characters: int) -> str:
    """A constraint that is no structural tag and no Lark grammar, in xgrammar's EBNF, with the root rule `root`."""
    rules = Rules()
    match kind:
        case "json_object":
            return rules.text(emit(json.loads(ANY_OBJECT), rules, max_characters))
        case "json_schema":
            return rules.text(emit(load(source), rules, max_characters))
        case "regex":
            return rules.text(_regex(source, rules))
        case "choice":
            return rules.text(_choice(source, rules))
        case "grammar":
            return rules.text(composed(load(source), rules, max_characters))
        case "ebnf":
            return ebnf.checked(source)
    raise Unenforceable(f"is a constraint of an unknown kind, {kind!r}")


def _regex(source: str, rules: Rules) -> str:
    pattern = parse_whole(source)
    if pattern == NOTHING or (has_look(pattern) and automaton(pattern).is_empty):
        raise Unenforceable("matches no text")
    return text_expression(pattern, rules, is_json=False)


def _choice(source: str, rules: Rules) -> str:
    choices = msgspec.json.decode(source, type=list[str])
    if len(choices) > MAX_CHOICES:
        raise Unenforceable(f"has {len(choices)} choices, more than {MAX_CHOICES}")
    if not all(choices):
        raise Unenforceable("has an empty choice: an answer has at least one token")
    return rules.add(one_of_texts(choices, rules))
