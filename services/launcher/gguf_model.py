"""A Llama-family GGUF file to a Hugging Face model folder: config, tokenizer, bfloat16 safetensors.

Only what the default model needs: architecture `llama`, byte-level BPE tokenizer with the `smollm` splitting of
digits. Anything else is refused by name, not converted wrongly. Run as `python -m services.launcher.gguf_model
FILE FOLDER`: it needs torch and some hundreds of megabytes, which the launcher's own process is to be spared.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from shared.errors import ConfigError

CONTROL_TOKEN = 3
"""`tokenizer.ggml.token_type` of special tokens."""

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


class Metadata:
    """The file's key-value pairs; a missing one is an error that names it."""

    def __init__(self, reader: GGUFReader) -> None:
        self._fields = reader.fields

    def __getitem__(self, key: str) -> Any:
        if key not in self._fields:
            raise ConfigError(f"the GGUF file has no {key}")
        return self._fields[key].contents()

    def expect(self, key: str, value: object) -> None:
        if self[key] != value:
            raise ConfigError(f"the GGUF file has {key} {self[key]!r}; only {value!r} is converted")


def tensor_name(gguf_name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    parts = gguf_name.split(".")
    if len(parts) == 2 and parts[0] in OUTER_NAMES:
        return f"{OUTER_NAMES[parts[0]]}.{parts[1]}"
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in LAYER_NAMES:
        return f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.{parts[3]}"
    raise ConfigError(f"the GGUF file has a tensor {gguf_name} that a Llama model has not")


def halves_from_pairs(weight: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """weight: [heads * head_dim, hidden]. GGUF orders a head's rows for rotary embedding over neighbouring pairs;
    Hugging Face's code rotates the first half against the second."""
    out_dim, in_dim = weight.shape
    pairs = weight.reshape(num_heads, out_dim // num_heads // 2, 2, in_dim)
    return pairs.swapaxes(1, 2).reshape(out_dim, in_dim)


def load_weights(reader: GGUFReader, meta: Metadata) -> dict[str, torch.Tensor]:
    """bfloat16 tensors under Hugging Face's names."""
    heads = {
        "attn_q": int(meta["llama.attention.head_count"]),
        "attn_k": int(meta["llama.attention.head_count_kv"]),
    }
    weights = {}
    for tensor in reader.tensors:
        values = np.array(dequantize(tensor.data, tensor.tensor_type))  # an unquantised one is a view of the file
        kind = tensor.name.split(".")[-2]
        if kind in heads:
            values = halves_from_pairs(values, heads[kind])
        weights[tensor_name(tensor.name)] = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
    return weights


def load_tokenizer(meta: Metadata) -> Tokenizer:
    meta.expect("tokenizer.ggml.model", "gpt2")
    meta.expect("tokenizer.ggml.pre", "smollm")
    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    types: list[int] = meta["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return tokenizer


def model_config(meta: Metadata, *, is_tied: bool) -> dict[str, object]:
    meta.expect("general.architecture", "llama")
    hidden, heads = int(meta["llama.embedding_length"]), int(meta["llama.attention.head_count"])
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": int(meta["llama.vocab_size"]),
        "hidden_size": hidden,
        "intermediate_size": int(meta["llama.feed_forward_length"]),
        "num_hidden_layers": int(meta["llama.block_count"]),
        "num_attention_heads": heads,
        "num_key_value_heads": int(meta["llama.attention.head_count_kv"]),
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "max_position_embeddings": int(meta["llama.context_length"]),
        "rms_norm_eps": float(f"{meta['llama.attention.layer_norm_rms_epsilon']:.6g}"),  # a float32 in the file
        "rope_theta": float(meta["llama.rope.freq_base"]),
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": is_tied,
        "torch_dtype": "bfloat16",
        **special_token_ids(meta),
    }


def special_token_ids(meta: Metadata) -> dict[str, object]:
    return {
        "bos_token_id": int(meta["tokenizer.ggml.bos_token_id"]),
        "eos_token_id": int(meta["tokenizer.ggml.eos_token_id"]),
        "pad_token_id": int(meta["tokenizer.ggml.padding_token_id"]),
    }


def tokenizer_config(meta: Metadata) -> dict[str, object]:
    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[meta["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[meta["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[meta["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[meta["tokenizer.ggml.unknown_token_id"]],
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(meta["llama.context_length"]),
        "chat_template": meta["tokenizer.chat_template"],
    }


def convert(source: Path, folder: Path) -> None:
    """Writes the model of the GGUF file `source` into the existing, empty `folder`."""
    reader = GGUFReader(source)
    meta = Metadata(reader)
    config = model_config(meta, is_tied=all(tensor.name != "output.weight" for tensor in reader.tensors))
    load_tokenizer(meta).save(str(folder / "tokenizer.json"))
    for name, content in {
        "tokenizer_config.json": tokenizer_config(meta),
        "config.json": config,
        "generation_config.json": special_token_ids(meta),
    }.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    weights = folder / "model.safetensors"
    save_file(load_weights(reader, meta), weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors makes it private


def main() -> None:
    source, folder = sys.argv[1:]
    try:
        convert(Path(source), Path(folder))
    except (ConfigError, OSError) as error:
        sys.exit(f"cannot convert {source}: {error}")


if __name__ == "__main__":
    main()
