"""A seeded Llama of two layers over bytes: its answers wander, come quickly, and can be held to a grammar."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS, EOS = "<s>", "</s>"
MAX_LEN = 1024


def make_vocabulary() -> dict[str, int]:
    return {symbol: number for number, symbol in enumerate([BOS, EOS, *sorted(pre_tokenizers.ByteLevel.alphabet())])}


def token_id(symbol: str) -> int:
    """Of a printable ASCII character."""
    return make_vocabulary()[symbol]


def write_model(folder: Path) -> None:
    """Weights, config and a byte-level tokenizer without merges."""
    vocabulary = make_vocabulary()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LEN,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS)  # type: ignore[no-untyped-call]
    fast.save_pretrained(folder)
