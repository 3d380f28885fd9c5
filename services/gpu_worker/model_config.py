"""What a model looks like: its config.json, checked, and reduced to what the native decoder needs."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from transformers import AutoConfig, PretrainedConfig

from shared.errors import ConfigError

NATIVE_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
Positive = Annotated[int, msgspec.Meta(ge=1)]
MOST_LAYERS = 10_000
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """A dense pre-norm decoder with rotary positions and a gated SiLU MLP.

    windows: per layer, how many tokens a query sees, itself included; None means all before it."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tied_embeddings: bool
    windows: tuple[int | None, ...]

    @property
    def num_parameters(self) -> int:
        """Numbers held in memory; tied embeddings count twice because the output head is kept in its own layout."""
        qkv = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim * self.hidden_size
        per_layer = qkv + self.num_heads * self.head_dim * self.hidden_size
        per_layer += 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        return self.num_layers * per_layer + 2 * self.vocab_size * self.hidden_size + self.hidden_size


class _Fields(msgspec.Struct, kw_only=True):
    """Types of what is read here of a config.json, where it is there; transformers checks some of them, for some
    models."""

    architectures: list[str] | None = None
    quantization_config: dict[str, Any] | None = None
    layer_types: list[str] | None = None
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    sliding_window: Positive | None = None
    head_dim: Positive | None = None
    rms_norm_eps: float | None = None
    hidden_act: str | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    tie_word_embeddings: bool | None = None
    dtype: str | None = None


def load_config(model_path: str) -> PretrainedConfig:
    """The folder's config.json as transformers reads it. No code from the folder is run. Raises ConfigError."""
    folder = Path(model_path)
    if not folder.is_dir():
        raise ConfigError(f"model path {model_path} is not a folder")
    file = folder / "config.json"
    try:
        raw = json.loads(file.read_text())
    except FileNotFoundError:
        raise ConfigError(f"model path {model_path} has no config.json") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("model_type"), str):
        raise ConfigError(f"{file} names no model_type")
    try:
        fields = msgspec.convert(raw, _Fields)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: {error}") from None
    _check_layers(raw, file)
    if "quantization_config" in raw:
        method = (fields.quantization_config or {}).get("quant_method", "unknown")
        raise ConfigError(f"{file}: quantised checkpoints are not supported (quantization_config, method {method})")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever its validators and its model's own code raise
        raise ConfigError(f"{file} is not a usable model config: {one_line(error)}") from error
    assert isinstance(config, PretrainedConfig)
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(f"{file}: {config.model_type} is an encoder-decoder model, not a causal language model")
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        raise ConfigError(f"{file}: layers of type {', '.join(sorted(kinds))} are not supported")
    return config


def _check_layers(raw: dict[str, Any], file: Path) -> None:
    """transformers makes lists of as many entries as there are layers, and checks the numbers later, if at all."""
    for name, value in raw.items():
        if isinstance(value, dict):
            _check_layers(value, file)
        elif "layer" in name and isinstance(value, int) and value > MOST_LAYERS:
            raise ConfigError(f"{file}: {name} is {value}, which is more than {MOST_LAYERS}")


def native_obstacle(config: PretrainedConfig) -> str | None:
    """Why the native decoder cannot run this model; None when it can."""
    expected = NATIVE_ARCHITECTURES.get(config.model_type)
    if expected is None:
        return f"model type {config.model_type} has no native decoder"
    architectures = config.architectures or [expected]
    if expected not in architectures:
        return f"architecture {', '.join(architectures)} is not {expected}"
    if config.hidden_act != "silu":
        return f"activation {config.hidden_act} is not silu"
    rope = dict(config.rope_parameters or {})
    if rope.get("rope_type", "default") not in ("default", "linear", "dynamic", "llama3", "yarn"):
        return f"rope type {rope['rope_type']} is not supported"
    if rope.get("partial_rotary_factor", 1.0) not in (None, 1.0):
        return "only a part of each head is rotated (partial_rotary_factor)"
    return None


def decoder_config(config: PretrainedConfig) -> DecoderConfig:
    """The native decoder's view of a config without a `native_obstacle`. Raises ConfigError, naming the field."""
    num_heads = _positive(config, "num_attention_heads")
    num_kv_heads = _positive(config, "num_key_value_heads")
    if num_heads % num_kv_heads:
        raise ConfigError(
            f"config.json: num_attention_heads {num_heads} is not a multiple of num_key_value_heads {num_kv_heads}"
        )
    hidden_size = _positive(config, "hidden_size")
    head_dim = getattr(config, "head_dim", None) or hidden_size // num_heads
    if head_dim % 2:
        raise ConfigError(f"config.json: head_dim {head_dim} is odd")
    num_layers = _positive(config, "num_hidden_layers")
    family = config.model_type
    attention_bias = bool(getattr(config, "attention_bias", False))
    return DecoderConfig(
        vocab_size=_positive(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_positive(config, "intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        norm_eps=float(config.rms_norm_eps),
        qkv_bias=True if family == "qwen2" else attention_bias,
        o_bias=False if family == "qwen2" else attention_bias,
        mlp_bias=bool(getattr(config, "mlp_bias", False)),
        qk_norm=family == "qwen3",
        tied_embeddings=bool(config.tie_word_embeddings),
        windows=_windows(config, num_layers),
    )


def model_dtype(config: PretrainedConfig, dtype: str) -> torch.dtype:
    """The dtype to compute in. "auto" is the checkpoint's own; float32 when it names none."""
    if dtype != "auto":
        if dtype not in DTYPES:
            raise ConfigError(f"dtype {dtype} is not one of auto, {', '.join(DTYPES)}")
        return DTYPES[dtype]
    own = config.dtype
    if own is None:
        return torch.float32
    name = str(own).removeprefix("torch.")
    if name not in DTYPES:
        raise ConfigError(f"config.json: dtype {name} is not one of {', '.join(DTYPES)}; choose one")
    return DTYPES[name]


def context_length(config: PretrainedConfig, max_model_len: int) -> int:
    """Tokens of the longest sequence: the model's own limit, or `max_model_len` below it. Raises ConfigError.

    Rope variants whose frequencies change with the length of the sequence (longrope) are served up to the length
    at which they would change: beyond it, keys in pages would have been rotated by other frequencies."""
    config = config.get_text_config()
    limit = next(
        (
            value
            for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
            if isinstance(value := getattr(config, name, None), int) and value > 0
        ),
        None,
    )
    rope = getattr(config, "rope_parameters", None) or {}
    if limit is not None and rope.get("rope_type") == "longrope":
        limit = min(limit, int(rope["original_max_position_embeddings"]))
    if limit is None:
        if not max_model_len:
            raise ConfigError("config.json names no context length (max_position_embeddings): set the maximum length")
        return max_model_len
    if max_model_len > limit:
        raise ConfigError(f"maximum length {max_model_len} is over the model's context of {limit} tokens")
    return max_model_len or limit


def _windows(config: PretrainedConfig, num_layers: int) -> tuple[int | None, ...]:
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:  # Mistral: one window for all layers
        return (window if config.model_type == "mistral" else None,) * num_layers
    if len(kinds) != num_layers:
        raise ConfigError(f"config.json: layer_types has {len(kinds)} entries for {num_layers} layers")
    if window is None and "sliding_attention" in kinds:
        raise ConfigError("config.json: layer_types has sliding_attention but sliding_window is not set")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _positive(config: PretrainedConfig, name: str) -> int:
    value = getattr(config, name, None)
    if not isinstance(value, int) or value <= 0:
        raise ConfigError(f"config.json: {name} is {value!r}, not a positive number")
    return value


def one_line(error: BaseException) -> str:
    """A library's error message, which may be a page, as a part of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:300] or type(error).__name__
