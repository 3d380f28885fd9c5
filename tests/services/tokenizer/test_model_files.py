"""What is read from a model's folder, and one clear line for whatever is wrong with it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from services.tokenizer.config import Settings
from services.tokenizer.model_files import ModelFiles, SamplingDefaults, load_model_files
from shared.errors import ConfigError
from tests.services.tokenizer.conftest import FolderMaker


def load(folder: Path, **settings: Any) -> ModelFiles:
    return load_model_files(Settings(model_path=str(folder), **settings))


def test_reads_a_folder(make_folder: FolderMaker) -> None:
    model = load(make_folder({"vocab_size": 512}, {"eos_token_id": [3, 1], "temperature": 0.6, "top_k": 20}))
    assert (model.name, model.vocab_size, model.max_model_len) == ("tiny-model", 512, 128)
    assert model.eos_token_ids == (1, 3)
    assert model.sampling == SamplingDefaults(temperature=0.6, top_k=20)
    assert model.has_chat_template


def test_defaults_without_generation_config(make_folder: FolderMaker) -> None:
    model = load(make_folder({"eos_token_id": 3}), served_model_name="tiny", max_model_len=64)
    assert (model.name, model.max_model_len, model.eos_token_ids) == ("tiny", 64, (1, 3))
    assert model.sampling == SamplingDefaults()


def test_reads_the_text_part_of_a_nested_config(make_folder: FolderMaker) -> None:
    model = load(make_folder({"text_config": {"vocab_size": 999, "max_position_embeddings": 77}}))
    assert (model.vocab_size, model.max_model_len) == (999, 77)


def test_truncation_in_the_tokenizer_file_is_off(make_folder: FolderMaker, byte_level: Any) -> None:
    cut = type(byte_level).from_str(byte_level.to_str())
    cut.enable_truncation(4)
    model = load(make_folder(tokenizer=cut))
    assert len(model.backend.encode("the cat sat on the mat").ids) > 4


@pytest.mark.parametrize(
    ("break_it", "settings", "says"),
    [
        (lambda folder: (folder / "config.json").unlink(), {}, "there is no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), {}, "config.json is not valid JSON"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe{"), {}, "config.json is not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), {}, "a JSON object was expected"),
        (lambda folder: (folder / "config.json").write_text('{"vocab_size": "x"}'), {}, "vocab_size must be a whole"),
        (lambda folder: (folder / "config.json").write_text("{}"), {}, "does not say the context length"),
        (lambda folder: (folder / "tokenizer.json").unlink(), {}, "no tokenizer can be loaded"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), {}, "no tokenizer can be loaded"),
        (lambda folder: (folder / "generation_config.json").write_text('{"top_p": "x"}'), {}, "top_p"),
        (lambda folder: (folder / "generation_config.json").write_text('{"eos_token_id": "x"}'), {}, "eos_token_id"),
        (lambda folder: None, {"max_model_len": 129}, "--max-model-len (SAPWOOD_MAX_MODEL_LEN) 129 is more than"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    make_folder: FolderMaker, break_it: Any, settings: dict[str, Any], says: str
) -> None:
    folder = make_folder()
    break_it(folder)
    with pytest.raises(ConfigError) as caught:
        load(folder, **settings)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        load(tmp_path / "nowhere")


def test_torch_is_not_needed(make_folder: FolderMaker) -> None:
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from services.tokenizer.main import Settings, load_model_files, Encoder, Detokenizer\n"
        f"model = load_model_files(Settings(model_path={str(make_folder())!r}))\n"
        "from shared.messages import ChatPrompt, Tokenize\n"
        "prompt = ChatPrompt(messages=[{'role': 'user', 'content': 'hello'}])\n"
        "[result] = Encoder(model, 4).encode([Tokenize(request_id='r', reply_to='g', prompt=prompt)])\n"
        "print(result.open.num_prompt_tokens)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 3
