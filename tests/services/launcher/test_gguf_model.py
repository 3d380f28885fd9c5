"""GGUF's names and orders to Hugging Face's."""

import numpy as np
import pytest

from services.launcher.gguf_model import halves_from_pairs, tensor_name
from shared.errors import ConfigError


@pytest.mark.parametrize(
    ("gguf", "hugging_face"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("blk.12.ffn_down.weight", "model.layers.12.mlp.down_proj.weight"),
        ("blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"),
    ],
)
def test_tensors_get_their_hugging_face_names(gguf: str, hugging_face: str) -> None:
    assert tensor_name(gguf) == hugging_face


@pytest.mark.parametrize("name", ["blk.0.ffn_gate_exps.weight", "rope_freqs.weight", "weight"])
def test_a_tensor_that_a_llama_model_has_not_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        tensor_name(name)


def test_pairs_of_rotary_rows_become_halves_head_by_head() -> None:
    # two heads of four rows: within a head, rows (0 1)(2 3) are the pairs (0 2)(1 3) of the halves' order
    rows = np.arange(8, dtype=np.float32).reshape(8, 1)
    assert halves_from_pairs(rows, num_heads=2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
