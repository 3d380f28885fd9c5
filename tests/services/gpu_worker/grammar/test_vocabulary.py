"""The vocabulary as a worker loads it from the model's folder."""

from pathlib import Path

import pytest

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
