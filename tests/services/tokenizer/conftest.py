"""Tiny tokenizers made on the spot, and a model folder around one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from services.tokenizer.config import Settings
from services.tokenizer.model_files import ModelFiles, load_model_files

TEXT = [
    "the cat sat on the mat and the dog sat on the cat",
    "hello world, how are you today? I am fine, thank you!",
    "le garçon a mangé une crêpe près de l'hôtel",
    "你好世界 こんにちは мир 🎉👩‍👩‍👧 é",
]

TEMPLATE = (
    "{% if raise is defined %}{{ raise_exception('not like that') }}{% endif %}"
    "{% if tools %}tools: {{ tools | tojson }}\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_byte_level() -> Tokenizer:
    """Like GPT-2's, Llama 3's, Qwen's: bytes as characters; BOS in front of a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def train_metaspace() -> Tokenizer:
    """Like Llama 2's: spaces as U+2581, unknown characters as byte tokens, a text's first space stripped."""
    trained = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    trained.train_from_iterator(
        TEXT[:2], trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    )
    trained.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    content = json.loads(trained.to_str())
    vocabulary = content["model"]["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    return Tokenizer.from_str(json.dumps(content))


def train_unigram() -> Tokenizer:
    """Like T5's: a unigram model whose decoder turns U+2581 into spaces and drops the first."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    return train_byte_level()


@pytest.fixture(scope="session")
def metaspace() -> Tokenizer:
    return train_metaspace()


@pytest.fixture(scope="session")
def unigram() -> Tokenizer:
    return train_unigram()


FolderMaker = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path, byte_level: Tokenizer) -> FolderMaker:
    """Writes a model folder: `make_folder(config={...}, generation={...}, template=None)`."""

    def make(
        config: dict[str, Any] | None = None,
        generation: dict[str, Any] | None = None,
        template: str | None = TEMPLATE,
        tokenizer: Tokenizer = byte_level,
    ) -> Path:
        folder = tmp_path / "tiny-model"
        fast = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(tokenizer.to_str()),
            bos_token=AddedToken("<s>", special=True),
            eos_token=AddedToken("</s>", special=True),
            chat_template=template,
        )
        fast.save_pretrained(folder)
        whole = {"vocab_size": tokenizer.get_vocab_size() + 8, "max_position_embeddings": 128} | (config or {})
        (folder / "config.json").write_text(json.dumps(whole))
        if generation is not None:
            (folder / "generation_config.json").write_text(json.dumps(generation))
        return folder

    return make


@pytest.fixture
def model(make_folder: FolderMaker) -> ModelFiles:
    return load_model_files(Settings(model_path=str(make_folder())))
