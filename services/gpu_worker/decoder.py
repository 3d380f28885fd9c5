"""The native decoder: Llama, SmolLM2, Mistral, Qwen2, Qwen3.

A layer is  x += o(attention(rope(norm(qkv(norm(x))))));  x += down(silu(gate(norm(x))) * up(norm(x))), where the norm
of queries and keys and the biases are there in some families only. qkv and gate_up are one product each.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from services.gpu_worker.attention import attend
from services.gpu_worker.batch import Batch
from services.gpu_worker.head import Head
from services.gpu_worker.kv_cache import LayerPages, PagePool
from services.gpu_worker.linear import Linear
from services.gpu_worker.model_config import DecoderConfig
from services.gpu_worker.rope import Rope, rotate
from services.gpu_worker.weights import Weights, owned


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's weights. q_norm, k_norm: [head_dim], of models that norm queries and keys."""

    input_norm: Tensor
    qkv: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear
    window: int | None


class Decoder:
    """Token ids to logits, with keys and values in a page pool."""

    def __init__(self, config: DecoderConfig, rope: Rope, weights: Weights) -> None:
        """Takes every tensor from `weights`; raises ConfigError for one that is missing or too many."""
        self._config = config
        self._rope = rope
        vocab, width = config.vocab_size, config.hidden_size
        self._embedding = owned(weights.get("model.embed_tokens.weight", vocab, width))
        self._layers = [_load_layer(config, weights, index) for index in range(config.num_layers)]
        norm = weights.get("model.norm.weight", width)
        head = self._embedding if config.tied_embeddings else owned(weights.get("lm_head.weight", vocab, width))
        self._rounds_scores = self._embedding.dtype is torch.bfloat16 and not config.qkv_bias
        self._norm = owned(norm).float()
        self._head = Head(head)
        weights.check_all_used(
            lambda name: name.endswith("rotary_emb.inv_freq") or (config.tied_embeddings and name == "lm_head.weight")
        )

    def forward(self, batch: Batch, pool: PagePool) -> Tensor:
        """float32 logits [number of batch.logit_rows, vocab_size]; writes the batch's keys and values to `pool`."""
        config = self._config
        hidden = F.embedding(batch.token_ids, self._embedding)
        cos, signed_sin = self._rope.angles(batch.positions, hidden.dtype)
        for layer, pages in zip(self._layers, pool.layers, strict=True):
            mixed = self._attention(layer, hidden, cos, signed_sin, batch, pages)
            if layer is self._layers[-1]:  # from here on, nothing is needed of rows without logits
                if not batch.logit_rows.shape[0]:
                    return torch.empty((0, config.vocab_size), dtype=torch.float32, device=hidden.device)
                mixed, hidden = mixed.index_select(0, batch.logit_rows), hidden.index_select(0, batch.logit_rows)
            hidden = layer.o(mixed, hidden)
            gate_up = layer.gate_up(self._rms_norm(hidden, layer.mlp_norm))
            gate, up = gate_up.chunk(2, -1)
            hidden = layer.down(F.silu(gate).mul_(up), hidden)
        return self._head(self._rms_norm(hidden.float(), self._norm))

    def _attention(
        self, layer: Layer, hidden: Tensor, cos: Tensor, signed_sin: Tensor, batch: Batch, pages: LayerPages
    ) -> Tensor:
        """hidden [N, hidden_size] -> the heads' outputs side by side, [N, num_heads * head_dim]."""
        num_heads, num_kv_heads, head_dim = self._config.num_heads, self._config.num_kv_heads, self._config.head_dim
        first_value = num_heads + num_kv_heads
        qkv = layer.qkv(self._rms_norm(hidden, layer.input_norm)).view(-1, first_value + num_kv_heads, head_dim)
        rotated = qkv[:, :first_value]
        if layer.q_norm is not None and layer.k_norm is not None:
            queries = self._rms_norm(rotated[:, :num_heads], layer.q_norm)
            keys = self._rms_norm(rotated[:, num_heads:], layer.k_norm)
            rotated = torch.cat((queries, keys), 1)
        rotated = rotate(rotated, cos, signed_sin)
        pages.write(batch.slots, rotated[:, num_heads:], qkv[:, first_value:])
        out = attend(
            rotated[:, :num_heads],
            pages,
            batch.attention_plan(layer.window, can_split=self._rounds_scores),
            head_dim**-0.5,
            rounds_scores=self._rounds_scores,
        )
        return out.reshape(-1, num_heads * head_dim)

    def _rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return torch.rms_norm(x, weight.shape, weight, self._config.norm_eps)


def _load_layer(config: DecoderConfig, weights: Weights, index: int) -> Layer:
    prefix = f"model.layers.{index}."
    width, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    q_width, kv_width = config.num_heads * head_dim, config.num_kv_heads * head_dim

    def norm(name: str, size: int) -> Tensor:
        return owned(weights.get(f"{prefix}{name}.weight", size))

    def linear(parts: dict[str, int], inputs: int, has_bias: bool) -> Linear:
        """The products `parts` (name -> outputs) of the same input as one."""
        matrices = [weights.get(f"{prefix}{name}.weight", outputs, inputs) for name, outputs in parts.items()]
        biases = [weights.get(f"{prefix}{name}.bias", outputs) for name, outputs in parts.items()] if has_bias else []
        if len(parts) == 1:
            return Linear(matrices[0], biases[0] if biases else None)
        return Linear(torch.cat(matrices), torch.cat(biases) if biases else None)

    return Layer(
        input_norm=norm("input_layernorm", width),
        qkv=linear(
            {"self_attn.q_proj": q_width, "self_attn.k_proj": kv_width, "self_attn.v_proj": kv_width},
            width,
            config.qkv_bias,
        ),
        q_norm=norm("self_attn.q_norm", head_dim) if config.qk_norm else None,
        k_norm=norm("self_attn.k_norm", head_dim) if config.qk_norm else None,
        o=linear({"self_attn.o_proj": width}, q_width, config.o_bias),
        mlp_norm=norm("post_attention_layernorm", width),
        gate_up=linear({"mlp.gate_proj": inner, "mlp.up_proj": inner}, width, config.mlp_bias),
        down=linear({"mlp.down_proj": width}, inner, config.mlp_bias),
        window=config.windows[index],
    )
