"""A small byte-level tokenizer with real merges, and grammars over it."""

import functools
import random
from pathlib import Path

import xgrammar
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from services.gpu_worker.grammar.guide import Guide
from services.gpu_worker.grammar.matcher import I32, empty_mask
from services.gpu_worker.grammar.rules import read_rules
from services.gpu_worker.grammar.vocabulary import Vocabulary
from services.gpu_worker.grammar.xgrammar_engine import XGrammarCompiled

TEXTS = [
    '{"name": "Ada", "age": 36, "city": "Paris", "tags": ["a", "b"], "is_ok": true, "none": null}',
    '{"name": "Éloïse", "age": 7, "population": 12345, "alphabet": "abc", "climate": "temperate"}',
    "the quick brown fox and the lazy dog name age city Paris alphabet alphabetical",
] * 20
PADDING = 13
"""Rows of the logits that no token has."""


@functools.cache
def vocabulary() -> Vocabulary:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken("<end>", special=True), AddedToken("<turn>", special=True)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return Vocabulary(tokenizer, tokenizer.get_vocab_size() + PADDING)


END, TURN = 0, 1


def encode(text: str) -> list[int]:
    ids: list[int] = vocabulary().backend.encode(text, add_special_tokens=False).ids
    return ids


def text_of(token_ids: list[int]) -> str:
    return vocabulary().text_of(token_ids).decode()


@functools.cache
def compiler() -> xgrammar.GrammarCompiler:
    return xgrammar.GrammarCompiler(vocabulary().info((END,)), max_threads=1)


def known(grammar: xgrammar.CompiledGrammar) -> XGrammarCompiled:
    """As a worker has a grammar that was used before."""
    compiled = XGrammarCompiled(grammar, vocabulary(), lambda: read_rules(grammar.grammar.serialize_json().encode()))
    for _ in range(2):
        compiled.matcher(())
    assert compiled.reading is not None
    compiled.reading.result()
    return compiled


def regex(pattern: str) -> XGrammarCompiled:
    return known(compiler().compile_regex(pattern))


def ebnf(source: str) -> XGrammarCompiled:
    return known(compiler().compile_grammar(source))


def json_schema(schema: dict[str, object]) -> XGrammarCompiled:
    return known(compiler().compile_json_schema(schema, any_whitespace=False))


def a_guide(
    compiled: XGrammarCompiled,
    *,
    stops: tuple[int, ...] = (END,),
    outputs: tuple[int, ...] = (),
    forced: bool = True,
) -> Guide:
    size = vocabulary().vocab_size
    guide = Guide(compiled, stops, vocabulary() if forced else None, size, empty_mask(size))
    assert all(guide.accept(token_id) for token_id in outputs)
    return guide


def allowed(mask: I32) -> set[int]:
    return {i for i in range(len(mask) * 32) if mask[i // 32] >> (i % 32) & 1}


def walk(guide: Guide, seed: int, prompt: list[int], limit: int = 400) -> tuple[list[int], int, bool]:
    """Outputs of a model without a mind: every allowed token is as likely, short ones and the end a little more.
    Returns the tokens without the stop id, how many were forced, and whether the answer ended."""
    rng = random.Random(seed)
    tokens: list[int] = []
    num_forced = 0
    while len(tokens) < limit:
        run = guide.run(prompt + tokens, limit - len(tokens))
        tokens += run
        num_forced += len(run)
        if guide.must_end():
            return tokens, num_forced, True
        guide.fill()
        choices = sorted(allowed(guide.mask))
        assert choices, "a place without a way on"
        token = END if END in choices and rng.random() < 0.3 else rng.choice(choices)
        assert guide.accept(token)
        if token == END:
            return tokens, num_forced, True
        tokens.append(token)
    return tokens, num_forced, False


def save(folder: Path) -> None:
    """The tokenizer as a model's folder has it."""
    vocabulary().backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
