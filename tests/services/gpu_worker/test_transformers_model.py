"""Models outside the native list run through transformers' code with the same logits as transformers alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconH1Config,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    Lfm2Config,
    LlamaConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen3MoeConfig,
)

from services.gpu_worker.runner import load_runner
from services.gpu_worker.transformers_model import TransformersModel
from shared.errors import ConfigError
from tests.services.gpu_worker.model_testing import TINY, Sequences, expected_logits, poison, save_model

CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "gpt2": lambda: GPT2Config(vocab_size=199, n_positions=256, n_embd=48, n_layer=2, n_head=4, bos_token_id=1),
    "gpt-neox": lambda: GPTNeoXConfig(
        vocab_size=199,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=256,
    ),
    "opt": lambda: OPTConfig(
        vocab_size=199,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=96,
        max_position_embeddings=256,
        word_embed_proj_dim=48,
    ),
    "gemma2": lambda: Gemma2Config(**TINY, head_dim=16, sliding_window=11, attn_logit_softcapping=2.0),
    "phi3": lambda: Phi3Config(**TINY, sliding_window=14),
    "olmo2": lambda: Olmo2Config(**TINY),
    "qwen3-moe": lambda: Qwen3MoeConfig(
        **TINY, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32
    ),
    "llama": lambda: LlamaConfig(**TINY),
}


@pytest.mark.parametrize("name", CONFIGS, ids=str)
def test_mixed_batches_give_transformers_logits(name: str, tmp_path: Path) -> None:
    model = save_model(CONFIGS[name](), tmp_path)
    runner = load_runner(str(tmp_path), dtype="float32", num_pages=64, model_impl="transformers")
    assert isinstance(runner.model, TransformersModel)
    poison(runner)
    sequences = Sequences(runner, [18, 33, 50])
    expected = [
        torch.cat([expected_logits(model, token_ids[:stop])[-1:] for stop in range(1, len(token_ids) + 1)])
        for token_ids in sequences.token_ids
    ]
    for counts in ({0: 12, 1: 20, 2: 33}, {0: 1, 1: 1, 2: 1}, {0: 1, 1: 11, 2: 1}, {0: 4, 1: 1, 2: 15}):
        for index, logits in sequences.run(counts).items():
            row = expected[index][sequences.computed[index] - 1]
            torch.testing.assert_close(logits, row, rtol=0, atol=1e-4)


def test_auto_takes_transformers_where_nothing_native_is(tmp_path: Path) -> None:
    save_model(CONFIGS["gpt2"](), tmp_path)
    assert isinstance(load_runner(str(tmp_path), num_pages=16).model, TransformersModel)
    with pytest.raises(ConfigError, match="model type gpt2 has no native decoder"):
        load_runner(str(tmp_path), num_pages=16, model_impl="native")


def test_dummy_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    CONFIGS["gpt2"]().save_pretrained(tmp_path)

    def logits(seed: int) -> torch.Tensor:
        runner = load_runner(str(tmp_path), load_format="dummy", num_pages=16, seed=seed)
        return Sequences(runner, [9]).run({0: 9})[0]

    torch.testing.assert_close(logits(1), logits(1), rtol=0, atol=0)
    assert not torch.allclose(logits(1), logits(2), atol=1e-3)


REFUSED: dict[str, tuple[Callable[[], PretrainedConfig], str]] = {
    "alibi": (
        lambda: BloomConfig(vocab_size=199, hidden_size=48, n_layer=2, n_head=4),
        "does not let its attention be replaced",
    ),
    "sinks": (
        lambda: GptOssConfig(**TINY, head_dim=16, num_local_experts=2, num_experts_per_tok=1),
        "needs what paged attention does not have: s_aux",
    ),
    "conv layers": (lambda: Lfm2Config(**TINY, full_attn_idxs=[1], block_auto_adjust_ff_dim=False), "conv"),
    "hybrid layers": (
        lambda: FalconH1Config(**TINY, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=16),
        "layers of type hybrid are not supported",
    ),
}


@pytest.mark.parametrize("name", REFUSED, ids=str)
def test_a_model_that_would_come_out_wrong_is_refused(name: str, tmp_path: Path) -> None:
    make, message = REFUSED[name]
    config = make()
    config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        load_runner(str(tmp_path), load_format="dummy", dtype="float32", num_pages=16, max_model_len=64)
    assert "\n" not in str(caught.value)


@torch.inference_mode()
def test_tokens_that_meet_outside_attention_are_noticed() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"](), attn_implementation="sapwood_paged")
    TransformersModel(model)
    mlp = model.model.layers[1].mlp
    compute = mlp.forward
    mlp.forward = lambda x: compute(x + x.roll(1, 1))  # a convolution over the row of tokens
    with pytest.raises(ConfigError, match="LlamaForCausalLM keeps state outside its attention"):
        TransformersModel(model)


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    save_model(CONFIGS["gpt-neox"](), tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["gpt_neox.final_layer_norm.bias"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"tensors are missing: gpt_neox\.final_layer_norm\.bias"):
        load_runner(str(tmp_path), num_pages=16)
