"""Attention of a flattened batch over pages, with PyTorch's own kernels; what the worker runs on a CPU.

out[n, h] = softmax over the tokens t that n sees of (query[n, h] . keys[t, h // G] * scale), times values[t, h // G]

Query n of a sequence at position p sees positions max(0, p - window + 1) .. p. G = H / Hkv query heads share one head
of keys and values; the kernel takes them as G queries (one token) or as G heads over keys of stride 0 (more tokens),
so that keys are never repeated in memory.

Scores are kept in float32 by PyTorch's attention kernel, or rounded to the batch's dtype between two matrix products
(`rounds_scores`), as transformers' plain attention does, which in bfloat16 takes half the time on a CPU. Rounding is
for models whose scores stay small; biases of the keys, as Qwen2 has them, can make scores of a hundred and more.

A slot that was not written may hold anything, NaN included, and 0 * NaN is NaN: masking scores is not enough. Sequences
of one token are computed together over copies of their pages in which what they do not see is zeroed; a longer run
is computed alone over exactly the tokens that it sees.

Where scores are rounded, sequences of one token that share a prefix are split: what several share is copied once and
multiplied by the queries of all, only the tails are copied for each, and the scores of all parts are put side by side
before the softmax.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from services.gpu_worker.attention_plan import AttentionPlan, Chunk, Group, SplitGroup
from services.gpu_worker.kv_cache import LayerPages
from services.gpu_worker.step import SequenceStep


def attend(
    query: Tensor,
    layer: LayerPages,
    plan: AttentionPlan,
    scale: float,
    softcap: float | None = None,
    *,
    rounds_scores: bool = False,
) -> Tensor:
    """query [N, H, D] -> [N, H, D], over a layer whose new keys and values are written.

    softcap c replaces scores s by c * tanh(s / c); rounds_scores has no effect with it."""
    kernel = _Kernel(scale, softcap, rounds_scores and softcap is None)
    assert kernel.rounds_scores or not plan.splits
    if len(plan.groups) + len(plan.chunks) + len(plan.splits) == 1:
        for group in plan.groups:
            return _attend_group(query, layer, group, kernel)
        for chunk in plan.chunks:
            return _attend_chunk(query, layer, chunk, kernel)
        return _attend_split(query, layer, plan.splits[0], scale)
    out = torch.empty_like(query)
    for split in plan.splits:
        rows = slice(split.first, split.first + split.count)
        out[rows] = _attend_split(query[rows], layer, split, scale)
    for group in plan.groups:
        rows = slice(group.first, group.first + group.count)
        out[rows] = _attend_group(query[rows], layer, group, kernel)
    for chunk in plan.chunks:
        rows = slice(chunk.first, chunk.first + chunk.count)
        out[rows] = _attend_chunk(query[rows], layer, chunk, kernel)
    return out


def _attend_group(query: Tensor, layer: LayerPages, group: Group, kernel: "_Kernel") -> Tensor:
    copies = layer.pages.index_select(2, group.pages).flatten(2, 3)  # [2, Hkv, B * P * page_size, D]
    if group.hidden is not None:
        copies.index_fill_(2, group.hidden, 0)
    num_kv_heads, _, head_dim = copies.shape[1:]
    keys, values = copies.view(2, num_kv_heads, group.count, -1, head_dim).unbind(0)
    queries = query.reshape(group.count, num_kv_heads, -1, head_dim).transpose(0, 1)
    mask = None if group.mask is None else group.mask.view(1, group.count, 1, -1)
    return kernel(queries, keys, values, mask).transpose(0, 1).reshape(query.shape)


def _attend_chunk(query: Tensor, layer: LayerPages, chunk: Chunk, kernel: "_Kernel") -> Tensor:
    seen = slice(chunk.offset, chunk.offset + chunk.length)
    if chunk.pages is None:
        context = layer.by_slot[:, :, seen]
    else:
        context = layer.pages.index_select(2, chunk.pages).flatten(2, 3)[:, :, seen]
    keys, values = context.unbind(0)  # [Hkv, length, D]
    num_kv_heads, _, head_dim = keys.shape
    if chunk.count == 1:
        queries = query.reshape(1, num_kv_heads, -1, head_dim)
        return kernel(queries, keys[None], values[None], None).reshape(query.shape)
    queries = query.reshape(chunk.count, num_kv_heads, -1, head_dim).permute(1, 2, 0, 3)
    return kernel(queries, keys[:, None], values[:, None], chunk.mask).permute(2, 0, 1, 3).reshape(query.shape)


def _attend_split(query: Tensor, layer: LayerPages, group: SplitGroup, scale: float) -> Tensor:
    num_kv_heads, _, head_dim = layer.keys.shape
    num_heads = query.shape[1] // num_kv_heads  # of one head of keys
    queries = (query * scale).view(group.count, num_kv_heads, num_heads, head_dim).transpose(0, 1)
    queries = queries.reshape(num_kv_heads, -1, head_dim)
    scores = query.new_zeros((num_kv_heads, queries.shape[1], group.width))
    out = torch.zeros_like(queries)

    products = []  # rows, columns and values [Hkv * R, T, D] of each part
    for part in group.parts:
        copies = layer.pages.index_select(2, part.pages).flatten(2, 3)
        if part.hidden is not None:
            copies.index_fill_(2, part.hidden, 0)
        keys, values = copies.view(2, num_kv_heads * part.count, -1, head_dim).unbind(0)
        rows = slice(part.first * num_heads, (part.first + part.count * part.num_sharing) * num_heads)
        columns = slice(part.column, part.column + keys.shape[1])
        sharing = queries[:, rows].reshape(keys.shape[0], -1, head_dim)
        scores[:, rows, columns] = torch.bmm(sharing, keys.transpose(1, 2)).view(num_kv_heads, -1, keys.shape[1])
        products.append((rows, columns, values))
    if group.mask is not None:
        scores.view(num_kv_heads, group.count, num_heads, -1).add_(group.mask)
    weights = scores.softmax(-1)
    for rows, columns, values in products:
        sharing = weights[:, rows, columns].reshape(values.shape[0], -1, values.shape[1])
        out[:, rows] += torch.bmm(sharing, values).view(num_kv_heads, -1, head_dim)
    return out.view(num_kv_heads, group.count, num_heads, head_dim).transpose(0, 1).reshape(query.shape)


@dataclass(frozen=True, slots=True)
class _Kernel:
    """softmax(query keys^T * scale + mask) values: [B, H, N, D] x [B, H or 1, T, D] -> [B, H, N, D].

    mask: addend to the scores of the last M of the T tokens that broadcasts to [B, H, N, M]."""

    scale: float
    softcap: float | None
    rounds_scores: bool

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        if self.rounds_scores:
            return self._two_products(query, keys, values, mask)
        if keys.shape[1] != query.shape[1]:
            keys, values = (part.expand(-1, query.shape[1], -1, -1) for part in (keys, values))
        if mask is not None:
            mask = F.pad(mask, (keys.shape[2] - mask.shape[-1], 0)).expand(*query.shape[:3], -1)
        if self.softcap is None:
            return F.scaled_dot_product_attention(query, keys, values, mask, scale=self.scale)
        scores = (query.float() @ keys.float().transpose(-1, -2)) * self.scale
        scores = torch.tanh(scores / self.softcap) * self.softcap
        if mask is not None:
            scores += mask
        return (scores.softmax(-1) @ values.float()).to(query.dtype)

    def _two_products(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        batch, num_heads, num_rows, head_dim = query.shape
        num_matrices, num_tokens = keys.shape[0] * keys.shape[1], keys.shape[2]
        # A product reads a slice of the pool several times slower than a copy of it.
        keys, values = keys.contiguous(), values.contiguous()
        queries = (query * self.scale).reshape(num_matrices, -1, head_dim)
        scores = torch.bmm(queries, keys.reshape(num_matrices, num_tokens, head_dim).transpose(1, 2))
        if mask is not None:
            scores.view(batch, num_heads, num_rows, num_tokens)[..., -mask.shape[-1] :].add_(mask)
        out = torch.bmm(scores.softmax(-1), values.reshape(num_matrices, num_tokens, head_dim))
        return out.view(batch, num_heads, num_rows, head_dim)


def attend_reference(
    query: Tensor,
    layer: LayerPages,
    steps: Sequence[SequenceStep],
    page_size: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """The definition, in float32, a token at a time. query [N, H, D], rows in the order of `steps`."""
    rows: list[Tensor] = []
    num_groups = query.shape[1] // layer.keys.shape[0]
    for step in steps:
        for position in range(step.start, step.end):
            seen = range(0 if window is None else max(0, position - window + 1), position + 1)
            slots = [step.page_table[t // page_size] * page_size + t % page_size for t in seen]
            keys = layer.keys[:, slots].float().repeat_interleave(num_groups, 0)  # [H, T, D]
            values = layer.values[:, slots].float().repeat_interleave(num_groups, 0)
            scores = torch.einsum("hd,htd->ht", query[len(rows)].float(), keys) * scale
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            rows.append(torch.einsum("ht,htd->hd", scores.softmax(-1), values))
    return torch.stack(rows).to(query.dtype)
