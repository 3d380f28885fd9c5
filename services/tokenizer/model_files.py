"""What a tokenizer process reads from the model's folder: config.json, generation_config.json, the tokenizer."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from shared.errors import ConfigError
from shared.settings import ModelSettings

CONTEXT_LENGTH_NAMES = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx")


class SamplingDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """The model's own sampling (generation_config.json), for what a client leaves open; else OpenAI's defaults."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model as its tokenizer service knows it.

    chat: transformers' tokenizer, which renders the chat template; backend: the tokenizer proper, without
    truncation and padding. vocab_size: rows of the model's embedding, the bound of every token id."""

    name: str
    chat: Any
    backend: Tokenizer
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    sampling: SamplingDefaults

    @property
    def has_chat_template(self) -> bool:
        return bool(self.chat.chat_template)

    @property
    def tool_template(self) -> str:
        """The template for conversations with tools; empty if there is none."""
        return str(self.chat.get_chat_template(tools=[{}])) if self.has_chat_template else ""


def load_model_files(settings: ModelSettings) -> ModelFiles:
    """Raises ConfigError, in one line, for whatever is missing or broken. Takes seconds: it imports transformers."""
    folder = Path(settings.model_path)
    if not folder.is_dir():
        raise ConfigError(f"--model-path {folder}: no such folder")
    config = _read_json(folder / "config.json")
    if config is None:
        raise ConfigError(f"--model-path {folder}: there is no config.json in it")
    text_config = config.get("text_config")
    text_config = text_config if isinstance(text_config, dict) else config
    generation = _read_json(folder / "generation_config.json")
    chat = _load_tokenizer(folder)
    backend: Tokenizer = chat.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    vocab_size = _positive(text_config, "vocab_size", folder) or backend.get_vocab_size(with_added_tokens=True)
    return ModelFiles(
        name=settings.served_model_name or folder.resolve().name,
        chat=chat,
        backend=backend,
        vocab_size=vocab_size,
        max_model_len=_context_length(text_config, settings.max_model_len, folder),
        eos_token_ids=_eos_token_ids({**text_config, **(generation or {})}, chat.eos_token_id, folder),
        sampling=_sampling_defaults(generation or {}, folder),
    )


def _read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None when there is no such file."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a JSON object was expected")
    return content


def _load_tokenizer(folder: Path) -> Any:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its advice on PyTorch is not for this process
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a missing or broken file shows as any of a dozen types, also plain Exception
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise ConfigError(f"--model-path {folder}: no tokenizer can be loaded from it: {reason}") from None
    if not isinstance(getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
        raise ConfigError(f"--model-path {folder}: {type(tokenizer).__name__} has no tokenizer.json to be built on")
    if tokenizer.backend_tokenizer.get_vocab_size() == 0:
        raise ConfigError(f"--model-path {folder}: its tokenizer has an empty vocabulary (is tokenizer.json missing?)")
    return tokenizer


def _positive(config: dict[str, Any], name: str, folder: Path) -> int | None:
    value = config.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{folder / 'config.json'}: {name} must be a whole number above 0, got {value!r}")
    return value


def _context_length(config: dict[str, Any], asked: int, folder: Path) -> int:
    lengths = (_positive(config, name, folder) for name in CONTEXT_LENGTH_NAMES)
    own = next((length for length in lengths if length is not None), None)
    if own is None:
        if not asked:
            raise ConfigError(f"{folder / 'config.json'} does not say the context length; give --max-model-len")
        return asked
    if asked > own:
        raise ConfigError(
            f"--max-model-len (SAPWOOD_MAX_MODEL_LEN) {asked} is more than the model's context of {own} tokens"
        )
    return asked or own


def _eos_token_ids(config: dict[str, Any], tokenizer_eos: int | None, folder: Path) -> tuple[int, ...]:
    """The ids that end an answer, in a fixed order."""
    said = config.get("eos_token_id")
    ids = said if isinstance(said, list) else [said]
    for token_id in ids:
        if token_id is not None and (not isinstance(token_id, int) or token_id < 0):
            raise ConfigError(f"--model-path {folder}: eos_token_id must be token ids, got {said!r}")
    return tuple(sorted({token_id for token_id in [*ids, tokenizer_eos] if token_id is not None}))


def _sampling_defaults(generation: dict[str, Any], folder: Path) -> SamplingDefaults:
    said = {name: generation[name] for name in SamplingDefaults.__struct_fields__ if generation.get(name) is not None}
    try:
        defaults = msgspec.convert(said, SamplingDefaults)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{folder / 'generation_config.json'}: {error}") from None
    return msgspec.structs.replace(defaults, top_k=max(defaults.top_k, 0))
