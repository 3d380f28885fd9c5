"""How a batch's attention is computed: which sequences together, over which pages, hiding what.

See `attention` for the computation itself.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.gpu_worker.shared_runs import PageTable, Run, find_runs, num_pages_in_runs, order_by_prefix
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
    follow each other in memory and pages is None. mask: addend to the scores of the last of these tokens, [N, N] or
    with a window up to [N, length]; None with N == 1, where all is seen."""

    first: int
    count: int
    pages: Tensor | None
    offset: int
    length: int
    mask: Tensor | None


@dataclass(slots=True)
class Part:
    """A part of the context of R * S sequences of a split group, from row `first` of it on: P pages that S neighbours
    share (runs), or that are one sequence's own (tails, S = 1).

    Its P * page_size scores are those from `column` on. pages: [R * P]. hidden: which of the R * P * page_size copied
    tokens none of the sequences sees, or None."""

    first: int
    count: int
    num_sharing: int
    column: int
    pages: Tensor
    hidden: Tensor | None


@dataclass(slots=True)
class SplitGroup:
    """B one-token sequences, rows first .. first + B - 1 of the batch, whose contexts are put together from parts.

    A sequence has `width` scores, each from one part or from none. mask: addend that hides those of none and
    those that it does not see, [B, 1, width], or None if it sees all."""

    first: int
    count: int
    width: int
    parts: list[Part]
    mask: Tensor | None


@dataclass(slots=True)
class AttentionPlan:
    """How a batch attends in every layer that has the same window."""

    groups: list[Group]
    chunks: list[Chunk]
    splits: list[SplitGroup]


def batch_order(steps: Sequence[SequenceStep], page_size: int) -> list[int]:
    """The order in which the steps' tokens are laid out: one-token steps first; a group is then a slice.

    Among them those that may be split come last, neighbours where they share pages; the others go by length."""
    single = [i for i, step in enumerate(steps) if len(step.token_ids) == 1]
    several = [i for i, step in enumerate(steps) if len(step.token_ids) > 1]
    single.sort(key=lambda i: steps[i].end)
    if len(single) > 1:
        tables = [_table(steps[i], page_size) for i in single]
        single = [single[i] for i in order_by_prefix(tables, page_size)]
    return single + sorted(several, key=lambda i: steps[i].end)


def plan_attention(
    steps: Sequence[SequenceStep],
    page_size: int,
    window: int | None,
    dtype: torch.dtype,
    device: torch.device,
    *,
    can_split: bool = False,
) -> AttentionPlan:
    """steps: in `batch_order`, their tokens following each other as the batch's rows.

    can_split: `attend` will round scores and have no softcap, which is when it can put scores together from parts."""
    num_single = sum(len(step.token_ids) == 1 for step in steps)
    spans = [_Span(step, step.start, 1, page_size, window) for step in steps[:num_single]]
    plan = AttentionPlan([], [], [])
    runs: list[Run] = []
    if can_split and num_single > 1 and (window is None or max(step.end for step in steps[:num_single]) <= window):
        runs = find_runs([span.pages for span in spans], page_size)
    covered = num_pages_in_runs(runs, num_single)
    first = 0
    for members in _grouped([span for span, num_pages in zip(spans, covered, strict=True) if num_pages == 0]):
        if len(members) == 1:
            plan.chunks.append(_plan_chunk(members[0], first, page_size, window, dtype, device))
        else:
            plan.groups.append(_plan_group(members, first, page_size, dtype, device))
        first += len(members)
    if runs:
        assert not any(covered[:first]), "the steps are not in batch order"
        for start, stop in _trees_together(spans, runs, first):
            inside = [run for run in runs if start <= run.first < stop]
            plan.splits.append(
                _plan_split(spans[start:stop], covered[start:stop], inside, start, page_size, dtype, device)
            )
        first = num_single
    for step in steps[num_single:]:
        for start in range(step.start, step.end, _BLOCK):
            span = _Span(step, start, min(_BLOCK, step.end - start), page_size, window)
            plan.chunks.append(_plan_chunk(span, first, page_size, window, dtype, device))
            first += span.count
    return plan


def _table(step: SequenceStep, page_size: int) -> PageTable:
    return np.frombuffer(step.page_table, dtype=np.int32)[: (step.end - 1) // page_size + 1]


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
    """Neighbours that are worth computing together; most where they are ordered by length."""
    first = 0
    for start, stop in _alike([span.stop for span in spans]):
        yield list(spans[start:stop])
        first = stop
    assert first == len(spans)


def _alike(lengths: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Slices start .. stop - 1 of sequences with so many tokens that are worth computing together."""
    start = shortest = longest = 0
    for row, length in enumerate(lengths):
        low, high = min(shortest, length), max(longest, length)
        is_full = high * (row - start + 1) > _MOST_TOKENS
        if row > start and (is_full or (low < high * _LEAST_FILL and high - low > _FREE_PADDING)):
            yield start, row
            start, low, high = row, length, length
        shortest, longest = (low, high) if row > start else (length, length)
    if lengths:
        yield start, len(lengths)


def _trees_together(spans: Sequence["_Span"], runs: Sequence[Run], first: int) -> Iterable[tuple[int, int]]:
    """Slices of the sequences from `first` on into split groups: no run is cut, and the scores fill their rows."""
    is_inside = {row for run in runs for row in range(run.first + 1, run.first + run.count)}
    starts = [row for row in range(first, len(spans)) if row not in is_inside]
    stops = [*starts[1:], len(spans)]
    longest = [max(span.stop for span in spans[a:b]) for a, b in zip(starts, stops, strict=True)]
    start = 0
    for tree in range(1, len(starts)):
        if longest[start] < longest[tree] * _LEAST_FILL:
            yield starts[start], starts[tree]
            start = tree
    yield starts[start], len(spans)


def _plan_group(
    members: Sequence[_Span], first: int, page_size: int, dtype: torch.dtype, device: torch.device
) -> Group:
    stops = [span.stop for span in members]
    pages, is_hidden = _copies([span.pages for span in members], [span.skip for span in members], stops, page_size)
    hidden = mask = None
    if is_hidden.any():
        hidden = torch.from_numpy(np.flatnonzero(is_hidden)).to(device)
        mask = torch.from_numpy(np.where(is_hidden, -np.inf, 0.0)).to(device, dtype)[:, None, None, :]
    return Group(first, len(members), torch.from_numpy(pages.reshape(-1)).to(device), hidden, mask)


def _copies(
    tables: Sequence[PageTable], skips: Sequence[int], stops: Sequence[int], page_size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The pages to copy [B, P], and which of their tokens are not skips[i] .. stops[i] - 1 [B, P * page_size]."""
    num_pages = max(len(table) for table in tables)
    pages = np.empty((len(tables), num_pages), dtype=np.int64)
    for row, table in zip(pages, tables, strict=True):
        row[: len(table)] = table
        row[len(table) :] = table[0]
    tokens = np.arange(num_pages * page_size)
    return pages, (tokens < np.array(skips)[:, None]) | (tokens >= np.array(stops)[:, None])


def _plan_split(
    spans: Sequence[_Span],
    covered: Sequence[int],
    runs: Sequence[Run],
    first: int,
    page_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> SplitGroup:
    """runs: with rows counted from the batch's first one-token sequence; `first` is the row of the first span."""
    parts: list[Part] = []
    seen = np.zeros((len(spans), 0), dtype=np.bool_)

    def add(row: int, num_sharing: int, column: int, tables: Sequence[PageTable], stops: Sequence[int]) -> None:
        nonlocal seen
        pages, is_hidden = _copies(tables, [0] * len(tables), stops, page_size)
        hidden = torch.from_numpy(np.flatnonzero(is_hidden)).to(device) if is_hidden.any() else None
        flat_pages = torch.from_numpy(pages.reshape(-1)).to(device)
        parts.append(Part(row, len(tables), num_sharing, column, flat_pages, hidden))
        stop = column + is_hidden.shape[1]
        if stop > seen.shape[1]:
            seen = np.pad(seen, ((0, 0), (0, stop - seen.shape[1])))
        seen[row : row + len(tables) * num_sharing, column:stop] |= ~is_hidden.repeat(num_sharing, 0)

    for together in _runs_together(runs, page_size):
        tables = [spans[run.first - first].pages[run.first_page : run.stop_page] for run in together]
        begin = together[0]
        stops = [len(table) * page_size for table in tables]
        add(begin.first - first, begin.count, begin.first_page * page_size, tables, stops)
    lengths = [span.stop - num_pages * page_size for span, num_pages in zip(spans, covered, strict=True)]
    for start, stop in _alike(lengths):
        tables = [spans[row].pages[covered[row] :] for row in range(start, stop)]
        add(start, 1, max(covered[start:stop]) * page_size, tables, lengths[start:stop])
    mask = None
    if not seen.all():
        mask = torch.from_numpy(np.where(seen, 0.0, -np.inf)).to(device, dtype)[:, None, :]
    return SplitGroup(first, len(spans), seen.shape[1], parts, mask)


def _runs_together(runs: Sequence[Run], page_size: int) -> Iterable[list[Run]]:
    """Runs of neighbours that begin at the same page, are shared by equally many and are worth computing together."""
    members: list[Run] = []
    for run in sorted(runs, key=lambda run: (run.first_page, run.first)):
        if members:
            begin, last = members[0], members[-1]
            lengths = [(other.stop_page - other.first_page) * page_size for other in (*members, run)]
            fits = run.first_page == begin.first_page and run.count == begin.count
            if not fits or run.first != last.first + last.count or len(list(_alike(lengths))) > 1:
                yield members
                members = []
        members.append(run)
    if members:
        yield members


def _plan_chunk(
    span: _Span, first: int, page_size: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> Chunk:
    count, length = span.count, span.stop - span.skip
    mask = None
    is_windowed = window is not None and count > 1 and length > window
    if count > 1:
        rows = np.arange(length - count, length)[:, None]
        columns = np.arange(0 if is_windowed else length - count, length)
        is_hidden = columns > rows
        if is_windowed:
            is_hidden |= columns <= rows - window  # type: ignore[operator]
        mask = torch.from_numpy(is_hidden).to(device)
        mask = torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill_(mask, -torch.inf)
    if (np.diff(span.pages) == 1).all():
        return Chunk(first, count, None, int(span.pages[0]) * page_size + span.skip, length, mask)
    return Chunk(first, count, torch.from_numpy(span.pages.astype(np.int64)).to(device), span.skip, length, mask)
