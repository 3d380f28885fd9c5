"""The vocabulary as a worker loads it from the model's folder."""

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gpu_worker.grammar.matcher import mask_of, mask_width
from services.gpu_worker.grammar.vocabulary import load_vocabulary
from shared.errors import InternalError
from tests.services.gpu_worker.grammar import toy


def test_the_folders_tokenizer_is_the_vocabulary(tmp_path: Path) -> None:
    toy.save(tmp_path)
    loaded = load_vocabulary(str(tmp_path), toy.vocabulary().vocab_size)
    assert loaded.token_bytes == toy.vocabulary().token_bytes
    assert loaded.info((toy.END,)).dump_metadata() == toy.vocabulary().info((toy.END,)).dump_metadata()
    assert loaded.info((toy.END,)) is loaded.info((toy.END,))
    assert len(loaded.token_bytes) == loaded.vocab_size
    assert loaded.token_bytes[toy.END] == b""


def test_a_folder_without_a_tokenizer_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match=str(tmp_path)):
        load_vocabulary(str(tmp_path), 100)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InternalError, match="no tokenizer to constrain an answer with") as raised:
        load_vocabulary(str(tmp_path), 100)
    assert "\n" not in raised.value.message


def test_texts_join_where_a_token_has_the_bytes_on_both_sides() -> None:
    vocabulary = toy.vocabulary()
    texts = [text for text in vocabulary.token_bytes if text]
    for first in range(256):
        for second in range(256):
            pair = bytes((first, second))
            assert vocabulary.can_join(b"x" + pair[:1], pair[1:] + b"x") == any(pair in text for text in texts)


@given(st.text(max_size=12), st.text(min_size=1, max_size=12))
def test_texts_that_do_not_join_are_cut_alone(before: str, after: str) -> None:
    vocabulary = toy.vocabulary()
    one, other = before.encode(), after.encode()
    if one and not vocabulary.can_join(one, other):
        tokens = vocabulary.backend.encode(before + after, add_special_tokens=False).ids
        ends = list(itertools.accumulate(len(vocabulary.token_bytes[token]) for token in tokens))
        assert len(one) in ends


def test_a_row_is_decided_where_all_its_tokens_begin_alike() -> None:
    vocabulary = toy.vocabulary()
    draw = random.Random(1)
    first = {token_id: text[:1] for token_id, text in enumerate(vocabulary.token_bytes)}
    rows, expected = [np.zeros(mask_width(vocabulary.vocab_size), np.int32)], [False]
    for _ in range(300):
        beginning = first[draw.randrange(vocabulary.vocab_size)]
        alike = [token_id for token_id, byte in first.items() if byte == beginning]
        chosen = set(draw.sample(alike, draw.randint(1, len(alike))))
        chosen |= set(draw.sample(range(vocabulary.vocab_size), draw.choice([0, 0, 1, 3])))
        rows.append(mask_of(sorted(chosen), vocabulary.vocab_size))
        expected.append(len({first[token_id] for token_id in chosen}) == 1)
    assert True in expected
    masks, order = np.stack(rows), np.array(draw.sample(range(len(rows)), len(rows)))
    assert vocabulary.are_decided(masks, order).tolist() == [expected[row] for row in order]


@pytest.mark.parametrize("pattern", ['"name": ("Ada"|"Alan"|[0-9]+), "age": 7', "(é|ê|x)+ the lazy dog", "a|b"])
def test_a_row_is_decided_wherever_a_text_or_the_end_is_forced(pattern: str) -> None:
    vocabulary = toy.vocabulary()
    for seed in range(20):
        draw = random.Random(seed)
        guide = toy.a_guide(toy.regex(pattern))
        while True:
            guide.fill()
            choices = sorted(toy.allowed(guide.mask))
            if guide.matcher.forced_text() or choices == [toy.END]:
                assert vocabulary.are_decided(guide.mask[None], np.array([0])).all()
            token = draw.choice(choices)
            assert guide.accept(token)
            if token == toy.END:
                break
