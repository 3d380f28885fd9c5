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
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from services.gpu_worker.kv_cache import LayerPages
from services.gpu_worker.step import SequenceStep

# One-token sequences share a kernel call while the shortest fills this part of the longest (or the padding is small):
# a call more costs about as much as 64 tokens of padding.
_LEAST_FILL = 0.75
_FREE_PADDING = 64
# Copies of pages that a call makes at most, in tokens, so that they stay in the processor's cache.
_MOST_TOKENS = 8192
# A longer run is computed in blocks of so many tokens, each over what its last token sees: for 512 tokens of a new
# prompt that is 6.4 ms a layer instead of 8.7 by PyTorch's attention kernel (SmolLM2-135M, bfloat16, one Zen 4 core).
_BLOCK = 128


@dataclass(slots=True)
class Group:
    """B one-token sequences over P pages each: rows first .. first + B - 1 of the batch.

    pages: [B * P]. hidden: which of the B * P * page_size copied tokens their sequence does not see, None if it
    sees all; mask: the same as an addend to scores, [B, 1, 1, P * page_size]."""

    first: int
    count: int
    pages: Tensor
    hidden: Tensor | None
    mask: Tensor | None


@dataclass(slots=True)
class Chunk:
    """A sequence's N tokens in a row, or a block of them: rows first .. first + N - 1 of the batch.

    It sees `length` tokens, from token `offset` of its `pages` [P] on; or from slot `offset` on when its pages
    follow each other in memory and pages is None. mask: addend [N, length]; None with N == 1, where all is seen."""

    first: int
    count: int
    pages: Tensor | None
    offset: int
    length: int
    mask: Tensor | None


@dataclass(slots=True)
class AttentionPlan:
    """How a batch attends in every layer that has the same window."""

    groups: list[Group]
    chunks: list[Chunk]


def batch_order(steps: Sequence[SequenceStep]) -> list[int]:
    """The order in which the steps' tokens are laid out: one-token steps first, by length; a group is then a slice."""
    return sorted(range(len(steps)), key=lambda i: (len(steps[i].token_ids) > 1, steps[i].end))


def plan_attention(
    steps: Sequence[SequenceStep], page_size: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> AttentionPlan:
    """steps: in `batch_order`, their tokens following each other as the batch's rows."""
    num_single = sum(len(step.token_ids) == 1 for step in steps)
    spans = [_Span(step, step.start, 1, page_size, window) for step in steps[:num_single]]
    plan = AttentionPlan([], [])
    first = 0
    for members in _grouped(spans):
        if len(members) == 1:
            plan.chunks.append(_plan_chunk(members[0], first, page_size, window, dtype, device))
        else:
            plan.groups.append(_plan_group(members, first, page_size, dtype, device))
        first += len(members)
    for step in steps[num_single:]:
        for start in range(step.start, step.end, _BLOCK):
            span = _Span(step, start, min(_BLOCK, step.end - start), page_size, window)
            plan.chunks.append(_plan_chunk(span, first, page_size, window, dtype, device))
            first += span.count
    return plan


class _Span:
    """Some tokens of a step: the pages that hold what they see, and the part of them that it is: skip .. stop - 1."""

    __slots__ = ("count", "pages", "skip", "stop")

    def __init__(self, step: SequenceStep, start: int, count: int, page_size: int, window: int | None) -> None:
        first_seen = 0 if window is None else max(0, start - window + 1)
        first_page = first_seen // page_size
        end = start + count
        table = np.frombuffer(step.page_table, dtype=np.int32)
        self.count = count
        self.pages = table[first_page : (end - 1) // page_size + 1]
        self.skip = first_seen - first_page * page_size
        self.stop = end - first_page * page_size


def _grouped(spans: Sequence[_Span]) -> Iterable[list[_Span]]:
    """Runs of spans, ordered by length, that are worth computing together."""
    members: list[_Span] = []
    for span in spans:
        if members:
            shortest = members[0].stop
            is_full = span.stop * (len(members) + 1) > _MOST_TOKENS
            if is_full or (shortest < span.stop * _LEAST_FILL and span.stop - shortest > _FREE_PADDING):
                yield members
                members = []
        members.append(span)
    if members:
        yield members


def _plan_group(
    members: Sequence[_Span], first: int, page_size: int, dtype: torch.dtype, device: torch.device
) -> Group:
    num_pages = max(len(span.pages) for span in members)
    pages = np.empty((len(members), num_pages), dtype=np.int64)
    for row, span in zip(pages, members, strict=True):
        row[: len(span.pages)] = span.pages
        row[len(span.pages) :] = span.pages[0]
    tokens = np.arange(num_pages * page_size)
    skips = np.array([span.skip for span in members])[:, None]
    stops = np.array([span.stop for span in members])[:, None]
    is_hidden = (tokens < skips) | (tokens >= stops)
    hidden = mask = None
    if is_hidden.any():
        hidden = torch.from_numpy(np.flatnonzero(is_hidden)).to(device)
        mask = torch.from_numpy(np.where(is_hidden, -np.inf, 0.0)).to(device, dtype)[:, None, None, :]
    return Group(first, len(members), torch.from_numpy(pages.reshape(-1)).to(device), hidden, mask)


def _plan_chunk(
    span: _Span, first: int, page_size: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> Chunk:
    count, length = span.count, span.stop - span.skip
    mask = None
    is_windowed = window is not None and count > 1 and length > window
    if count > 1:
        rows = np.arange(length - count, length)[:, None]
        columns = np.arange(length)
        is_hidden = columns > rows
        if is_windowed:
            is_hidden |= columns <= rows - window  # type: ignore[operator]
        mask = torch.from_numpy(is_hidden).to(device)
        mask = torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill_(mask, -torch.inf)
    if (np.diff(span.pages) == 1).all():
        return Chunk(first, count, None, int(span.pages[0]) * page_size + span.skip, length, mask)
    return Chunk(first, count, torch.from_numpy(span.pages.astype(np.int64)).to(device), span.skip, length, mask)


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
    num_parts = len(plan.groups) + len(plan.chunks)
    if num_parts == 1 and plan.chunks:
        return _attend_chunk(query, layer, plan.chunks[0], kernel)
    if num_parts == 1:
        return _attend_group(query, layer, plan.groups[0], kernel)
    out = torch.empty_like(query)
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


@dataclass(frozen=True, slots=True)
class _Kernel:
    """softmax(query keys^T * scale + mask) values: [B, H, N, D] x [B, H or 1, T, D] -> [B, H, N, D].

    mask: addend that broadcasts to [B, H, N, T]."""

    scale: float
    softcap: float | None
    rounds_scores: bool

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        if self.rounds_scores:
            return self._two_products(query, keys, values, mask)
        if keys.shape[1] != query.shape[1]:
            keys, values = (part.expand(-1, query.shape[1], -1, -1) for part in (keys, values))
        if mask is not None:
            mask = mask.expand(*query.shape[:3], -1)
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
        queries = (query * self.scale).reshape(num_matrices, -1, head_dim)
        scores = torch.bmm(queries, keys.reshape(num_matrices, num_tokens, head_dim).transpose(1, 2))
        if mask is not None:
            scores.view(batch, num_heads, num_rows, num_tokens).add_(mask)
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
