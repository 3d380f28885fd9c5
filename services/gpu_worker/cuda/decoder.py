"""The native decoder on a GPU: the same models as `services.gpu_worker.decoder`, in fused Triton kernels.

A layer is five launches for few rows: norm and qkv product; rope, head norms and the write of keys and values;
attention; output product and residual; norm, gate and up product, silu and product; down product and residual.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from services.gpu_worker.cuda.attention import StepAttention
from services.gpu_worker.cuda.step_rows import StepRows
from services.gpu_worker.kernels.decode_attention import NewTokens
from services.gpu_worker.kernels.fused_linear import FusedLinear
from services.gpu_worker.kernels.linear_choice import LinearTable
from services.gpu_worker.kernels.rope_write import rope_table, rope_write
from services.gpu_worker.kernels.skinny_linear import Workspace
from services.gpu_worker.kv_cache import PagePool
from services.gpu_worker.model_config import DecoderConfig
from services.gpu_worker.rope import Rope
from services.gpu_worker.weights import Weights


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's weights. q_norm, k_norm: [head_dim], of models that norm queries and keys."""

    qkv: FusedLinear
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: FusedLinear
    gate_up: FusedLinear
    down: FusedLinear
    window: int | None


class CudaDecoder:
    """Rows of a step to hidden states, and hidden states to logits; keys and values go to the page pool."""

    def __init__(self, config: DecoderConfig, rope: Rope, weights: Weights, max_positions: int) -> None:
        """Takes every tensor from `weights`; raises ConfigError for one that is missing or too many."""
        self.config = config
        self.vocab_size = config.vocab_size
        vocab, width = config.vocab_size, config.hidden_size
        self._embedding = weights.get("model.embed_tokens.weight", vocab, width)
        products = _Products(config, self._embedding.device)
        self._layers = [_load_layer(config, weights, products, index) for index in range(config.num_layers)]
        self._head = products.make(
            self._embedding if config.tied_embeddings else weights.get("lm_head.weight", vocab, width),
            norm=weights.get("model.norm.weight", width),
            out_dtype=torch.float32,
        )
        self._rope = rope_table(rope.inverse_frequencies, rope.scale, max_positions)
        self.dtype = self._embedding.dtype
        weights.check_all_used(
            lambda name: name.endswith("rotary_emb.inv_freq") or (config.tied_embeddings and name == "lm_head.weight")
        )

    def forward(
        self, rows: StepRows, num_rows: int, attention: StepAttention, page_tables: Tensor, pool: PagePool
    ) -> Tensor:
        """Hidden states [num_rows, hidden_size] of the first rows, before the last norm. `attention` has begun."""
        config = self.config
        num_heads, num_kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        positions, slots = rows.positions[:num_rows], rows.slots[:num_rows]
        hidden = F.embedding(rows.token_ids[:num_rows], self._embedding)
        for layer, pages in zip(self._layers, pool.layers, strict=True):
            qkv = layer.qkv(hidden).view(num_rows, num_heads + 2 * num_kv_heads, head_dim)
            keys, values = qkv[:, num_heads : num_heads + num_kv_heads], qkv[:, num_heads + num_kv_heads :]
            if attention.takes_new_tokens:
                new = NewTokens(keys, values, self._rope, layer.q_norm, layer.k_norm, config.norm_eps)
                mixed = attention.attend_new(qkv[:, :num_heads], new, page_tables, pages, layer.window)
            else:
                query = rope_write(
                    qkv,
                    positions,
                    self._rope,
                    slots,
                    pages.keys,
                    pages.values,
                    layer.q_norm,
                    layer.k_norm,
                    config.norm_eps,
                    key_scales=attention.scales,
                    value_scales=attention.scales,
                    in_place=True,
                )
                mixed = attention.attend(query, keys, values, page_tables, pages, layer.window)
            hidden = layer.o(mixed.view(num_rows, -1), hidden, in_place=True)
            hidden = layer.down(layer.gate_up(hidden), hidden, in_place=True)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [N, hidden_size] -> float32 [N, vocab_size]."""
        return self._head(hidden)


class _Products:
    """Makes the model's products, which share a table of measurements and scratch memory."""

    def __init__(self, config: DecoderConfig, device: torch.device) -> None:
        self._eps = config.norm_eps
        self._table = LinearTable.of_device(device) if device.type == "cuda" else LinearTable(4)
        self._workspace = Workspace(device)

    def make(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        norm: Tensor | None = None,
        *,
        silu_and_mul: bool = False,
        out_dtype: torch.dtype | None = None,
    ) -> FusedLinear:
        return FusedLinear(
            weight,
            bias,
            table=self._table,
            workspace=self._workspace,
            norm_weight=norm,
            eps=self._eps,
            silu_and_mul=silu_and_mul,
            out_dtype=out_dtype,
        )


def _load_layer(config: DecoderConfig, weights: Weights, products: _Products, index: int) -> Layer:
    prefix = f"model.layers.{index}."
    width, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    q_width, kv_width = config.num_heads * head_dim, config.num_kv_heads * head_dim

    def norm(name: str, size: int) -> Tensor:
        return weights.get(f"{prefix}{name}.weight", size)

    def linear(parts: dict[str, int], inputs: int, has_bias: bool, norm: Tensor | None = None) -> FusedLinear:
        """The products `parts` (name -> outputs) of the same input as one."""
        matrices = [weights.get(f"{prefix}{name}.weight", outputs, inputs) for name, outputs in parts.items()]
        biases = [weights.get(f"{prefix}{name}.bias", outputs) for name, outputs in parts.items()] if has_bias else []
        bias = torch.cat(biases) if biases else None
        return products.make(torch.cat(matrices), bias, norm, silu_and_mul="mlp.gate_proj" in parts)

    return Layer(
        qkv=linear(
            {"self_attn.q_proj": q_width, "self_attn.k_proj": kv_width, "self_attn.v_proj": kv_width},
            width,
            config.qkv_bias,
            norm("input_layernorm", width),
        ),
        q_norm=norm("self_attn.q_norm", head_dim) if config.qk_norm else None,
        k_norm=norm("self_attn.k_norm", head_dim) if config.qk_norm else None,
        o=linear({"self_attn.o_proj": width}, q_width, config.o_bias),
        gate_up=linear(
            {"mlp.gate_proj": inner, "mlp.up_proj": inner},
            width,
            config.mlp_bias,
            norm("post_attention_layernorm", width),
        ),
        down=linear({"mlp.down_proj": width}, inner, config.mlp_bias),
        window=config.windows[index],
    )
