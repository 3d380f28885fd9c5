"""A constraint of any kind to xgrammar's compiled form. Runs in a compiling process."""

import json

import msgspec
import xgrammar

from services.tokenizer.grammar.errors import Unenforceable


def compile_constraint(
    kind: str, source: str, compiler: xgrammar.GrammarCompiler, max_characters: int
) -> tuple[xgrammar.CompiledGrammar, str]:
    """The compiled grammar, and the grammar as EBNF. max_characters: what an answer can have at most.

    Raises Unenforceable, or RuntimeError as xgrammar does."""
    match kind:
        case "json_object":
            grammar = xgrammar.Grammar.from_json_schema('{"type":"object"}', any_whitespace=False)
        case "json_schema":
            grammar = xgrammar.Grammar.from_json_schema(source, any_whitespace=False)
        case "regex":
            grammar = xgrammar.Grammar.from_regex(source)
        case "ebnf":
            grammar = xgrammar.Grammar.from_ebnf(source)
        case "lark":
            grammar = xgrammar.Grammar.from_lark(source)
        case "choice":
            choices = " | ".join(json.dumps(choice) for choice in msgspec.json.decode(source, type=list[str]))
            grammar = xgrammar.Grammar.from_ebnf(f"root ::= {choices}")
        case "structural_tag":
            grammar = xgrammar.Grammar.from_structural_tag(source)
        case _:
            raise Unenforceable(f"is a constraint of an unknown kind, {kind!r}")
    return compiler.compile_grammar(grammar), str(grammar)
