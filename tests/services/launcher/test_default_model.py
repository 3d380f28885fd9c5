"""The default model: where it goes, and that it is the model that its file holds."""

import asyncio
import json
from pathlib import Path

import pytest

from services.launcher import default_model
from shared.errors import ConfigError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAPWOOD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_cache_folder_follows_the_environment() -> None:
    assert default_model.cache_folder({"SAPWOOD_CACHE": "/a"}) == Path("/a")
    assert default_model.cache_folder({"XDG_CACHE_HOME": "/b"}) == Path("/b/sapwood")
    assert default_model.cache_folder({}) == Path.home() / ".cache" / "sapwood"


async def test_two_at_once_make_it_once_and_leave_nothing_half_made(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    async def convert(source: Path, folder: Path) -> None:
        made.append(folder)
        await asyncio.sleep(0.5)
        folder.mkdir()  # noqa: ASYNC240
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(default_model, "_convert", convert)
    monkeypatch.setattr(default_model, "gguf_path", lambda: Path("m.gguf"))
    first, second = await asyncio.gather(default_model.prepare(), default_model.prepare())
    assert first == second == made[0]
    assert len(made) == 1
    assert await default_model.prepare() == first


async def test_a_file_that_is_no_gguf_is_one_line(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.gguf").write_bytes(b"nothing of the kind" * 10)
    monkeypatch.setattr(default_model, "gguf_path", lambda: tmp_path / "m.gguf")
    with pytest.raises(ConfigError, match=r"^the default model could not be converted: .*$"):
        await default_model.prepare()
    assert not default_model.is_there()
    assert [path.name for path in (cache / "models").iterdir()] == [f"{default_model.NAME}.lock"]


async def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAPWOOD_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="cannot write the default model"):
        await default_model.prepare()


@pytest.mark.model
async def test_the_default_model_is_complete() -> None:
    folder = await default_model.prepare()
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"], config["eos_token_id"]) == ("llama", 30, 2)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2
    assert (folder / "model.safetensors").stat().st_size == 269_060_552
    assert {path.name for path in folder.iterdir()} >= {"tokenizer.json", "tokenizer_config.json"}


@pytest.mark.model
async def test_its_tokenizer_knows_the_chat_format_and_loses_no_character() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(await default_model.prepare())
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.encode(prompt)[0] == 1
    for text in ("Hello  world 1234\n\n\tover", "you'll 3.14", "über 你好 🎉", "  "):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("2024")) == ["2", "0", "2", "4"]
