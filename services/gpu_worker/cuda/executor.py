"""Steps on a GPU: launched without waiting, one ahead of the tokens that are looked at."""

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from contextlib import contextmanager
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.gpu_worker.cuda.attention import StepAttention
from services.gpu_worker.cuda.buckets import Buckets
from services.gpu_worker.cuda.decoder import CudaDecoder
from services.gpu_worker.cuda.graphs import Graphs
from services.gpu_worker.cuda.preparation import RUNS, Preparation
from services.gpu_worker.cuda.runs import DeviceRuns
from services.gpu_worker.cuda.sampling import SeatSampler
from services.gpu_worker.cuda.seats import Seats
from services.gpu_worker.cuda.staging import Staging
from services.gpu_worker.cuda.step_rows import StepRows
from services.gpu_worker.decode_set import DecodeSet
from services.gpu_worker.executor import Chunk
from services.gpu_worker.grammar.masks import Masks
from services.gpu_worker.grammar.prediction import NO_ROOM, Guesses, Room, RunTable
from services.gpu_worker.kernels.copy_pages import copy_pages
from services.gpu_worker.kv_cache import PagePool
from services.gpu_worker.prefix_groups import plan_groups
from services.gpu_worker.sampling_state import SamplingState
from services.gpu_worker.sequence import Sequence
from services.gpu_worker.step import PREFILL_SHARE

I32 = npt.NDArray[np.int32]

Shape = tuple[int, int, int]
"""Of a pass with chunks: rows, parts, tiles."""

RUN_AHEAD = 1
MOST_CAPTURED_ROWS = 1024
"""Steps with chunks are captured up to so many rows: beyond, the device is busy for longer than launching takes."""
MOST_CAPTURED_CHUNKS = 64
LEAST_PLACES = 16
DEMAND_SHARE = 1.25
"""A step with guesses has room for somewhat more tokens of runs than steps had lately, and for the longest run."""
MIN_GROUP_TOKENS = 256
MIN_GROUP_ROWS = 3
"""A shared prefix is read once for all its sequences from here on: below, it comes from the cache for most of them."""


class CudaExecutor:
    """See `executor.Executor`. A step is a forward pass, then the head and the choice of tokens, each replayed from a
    graph where it is small; the tokens come back through pinned memory."""

    run_ahead = RUN_AHEAD

    def __init__(
        self,
        model: CudaDecoder,
        pool: PagePool,
        *,
        num_seats: int,
        prefill_budget: int,
        max_model_len: int,
        uses_graphs: bool = True,
    ) -> None:
        device = pool.storage.device
        self._model = model
        self._pool = pool
        self._device = device
        self.vocab_size = model.vocab_size
        self.num_pages, self.page_size = pool.num_pages, pool.page_size
        self.max_model_len = min(max_model_len, pool.num_pages * pool.page_size)
        self.num_seats = num_seats
        max_rows = prefill_budget + prefill_budget // PREFILL_SHARE + num_seats
        self._seats = Seats(num_seats, -(-self.max_model_len // self.page_size), device)
        self._attention = StepAttention(model.config, model.dtype, pool, max(num_seats, MOST_CAPTURED_ROWS))
        self._rows = StepRows(max_rows, num_seats, self._seats, self.page_size, self._attention.tile_rows, device)
        self._sampler = SeatSampler(self._seats, model.vocab_size, num_seats, device)
        self._staging = Staging(
            64 * max_rows + num_seats * (model.vocab_size // 8 + 64) + (1 << 20), RUN_AHEAD + 2, device
        )
        self._graphs = Graphs(uses_graphs and device.type == "cuda")
        self._decode_buckets = Buckets(num_seats)
        self._most_captured = min(MOST_CAPTURED_ROWS, max_rows)
        self._row_buckets = Buckets(self._most_captured)
        self._hidden = torch.zeros(max_rows, model.config.hidden_size, dtype=model.dtype, device=device)
        self._logits = torch.zeros(num_seats, model.vocab_size, dtype=torch.float32, device=device)
        self._tokens = torch.zeros(num_seats, dtype=torch.int32, device=device)
        self.runs = RunTable()
        self._runs = DeviceRuns(self.runs, model.vocab_size, device)
        is_cuda = device.type == "cuda"
        self._results = [torch.zeros(num_seats, dtype=torch.int32, pin_memory=is_cuda) for _ in range(RUN_AHEAD + 2)]
        self._turn = 0
        self._placed: DecodeSet | None = None
        self._grouped: DecodeSet | None = None
        self._has_groups = False
        self._preparation = Preparation(self._mixed_parts(), self._compile, self._decode_parts())

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Compiles and captures what steady decode needs, with steps in which no row has a sequence."""
        nobody = np.empty(0, np.int32)
        for size in reversed(self._decode_buckets.sizes):
            self._staging.next_step()
            self._rows.set_decode(nobody, size, self._staging)
            for _ in range(RUNS):
                self._forward_decode(size)
                self.choose(size, [], None)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
        self._try_mixed(1, has_groups=False)  # no request can do without a prefill

    @torch.inference_mode()
    def prepare(self) -> bool:
        return self._preparation.go_on()

    def _compile(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # of this thread
        for size in self._decode_buckets.sizes:
            self._sampler.compile(self._logits[:size], self._rows.logit_seats[:size], self._tokens[:size])

    def _mixed_parts(self) -> Iterator[Callable[[], None]]:
        """Steps with chunks."""
        for has_groups in (False, True):
            for size in self._row_buckets.sizes:
                yield partial(self._try_mixed, size, has_groups=has_groups)

    def _decode_parts(self) -> Iterator[Callable[[], None]]:
        """Decode with prefixes that are shared, rows that are sampled, rows under a grammar."""
        for size in self._decode_buckets.sizes:
            yield partial(self._try_decode, size)

    def _try_mixed(self, num_rows: int, *, has_groups: bool) -> None:
        self._staging.next_step()
        self._placed = None
        shape = self._captured_shape(num_rows)
        self._rows.set_mixed(np.empty(0, np.int32), [], *shape, self._staging)
        with self._with_groups(has_groups):
            self._run_captured_mixed(shape)

    def _try_decode(self, size: int) -> None:
        self._staging.next_step()
        self._placed = None
        self._rows.set_decode(np.empty(0, np.int32), size, self._staging)
        with self._with_groups(True):
            self._forward_decode(size)
        self._run_head(size)
        self._sampler.prepare(self._logits[:size], self._rows.logit_seats[:size], self._tokens[:size], self._graphs)

    @contextmanager
    def _with_groups(self, has_groups: bool) -> Iterator[None]:
        before, self._has_groups = self._has_groups, has_groups
        yield
        self._has_groups = before

    @torch.inference_mode()
    def run_largest_step(self) -> None:
        """Takes as much memory as any step can, with rows that write nothing."""
        num_rows = self._rows.max_rows
        shape = (num_rows, 1, self._rows.most_tiles(num_rows, 1))
        self._staging.next_step()
        self._rows.set_mixed(np.empty(0, np.int32), [], *shape, self._staging)
        for longest in (1, None):  # both kernels are compiled before there are requests
            self._mixed_pass(shape, 0, longest)
        self._head_pass(self.num_seats)
        self.choose(self.num_seats, [], None)

    def seat(self, sequence: Sequence) -> None:
        self._seats.take(sequence)
        self._sampler.take(sequence)

    def extend(self, sequence: Sequence) -> None:
        self._seats.extend(sequence)

    def append(self, sequence: Sequence, token_ids: Many[int]) -> None:
        self._sampler.append(sequence, token_ids)

    @torch.inference_mode()
    def copy_pages(self, pairs: Many[tuple[int, int]]) -> None:
        if pairs:
            places = self._staging.to_device(np.array(pairs, np.int32), self._device).view(-1, 2)
            count = self._staging.to_device(np.array([len(pairs)], np.int32), self._device)
            storage = self._pool.storage
            copy_pages(storage.view(torch.uint8) if storage.element_size() == 1 else storage, places, count)

    def make_masks(self) -> I32:
        return self._sampler.make_masks()

    @torch.inference_mode()
    def launch(self, decode: DecodeSet, chunks: Many[Chunk], guesses: Guesses | None = None) -> "CudaLaunch":
        self._staging.next_step()
        self._seats.flush(self._staging)
        self._sampler.flush(self._staging)
        room = NO_ROOM
        if len(decode) > self._most_captured:
            guesses = None
        if chunks or guesses is not None:
            num_rows, room = self._launch_mixed(decode, chunks, guesses)
        else:
            num_rows = self._launch_decode(decode)
        last = [chunk.sequence for chunk in chunks if chunk.step.wants_logits]
        states = [one.sampling for one in decode.sequences] + [one.sampling for one in last]
        return CudaLaunch(self, num_rows, states, room)

    def _launch_decode(self, decode: DecodeSet) -> int:
        size = self._decode_buckets.fill(len(decode))
        self._set_groups(decode)
        if decode is not self._placed:
            self._rows.set_decode(decode.seats, size, self._staging)
            self._placed = decode
        self._forward_decode(size)
        return size

    def _forward_decode(self, size: int) -> None:
        self._graphs.run(("decode", size, self._has_groups), lambda: self._decode_pass(size))

    def _decode_pass(self, size: int) -> None:
        rows = self._rows
        rows.arrange(size, 0, 0)
        rows.begin(size, has_chunks=False)
        self._attention.begin(rows, num_decode=size, num_tiles=0, has_groups=self._has_groups)
        hidden = self._model.forward(rows, size, self._attention, self._seats.page_tables, self._pool)
        self._logits[:size].copy_(self._model.logits(hidden))

    def _launch_mixed(self, decode: DecodeSet, chunks: Many[Chunk], guesses: Guesses | None) -> tuple[int, Room]:
        """Decode and chunks in one pass, and runs where it is captured: rows of logits, room for runs."""
        self._set_groups(decode)
        self._placed = None
        num_decode = len(decode)
        num_tokens = num_decode + sum(len(chunk.step.token_ids) for chunk in chunks)
        num_wanted = num_decode + sum(chunk.step.wants_logits for chunk in chunks)
        is_small = num_tokens <= self._most_captured and len(chunks) <= MOST_CAPTURED_CHUNKS
        if not is_small:
            guesses = None
            shape = (num_tokens, len(chunks), self._rows.most_tiles(num_tokens, len(chunks)))
        else:
            if guesses is not None:
                self._runs.load(self._staging)
                num_tokens += max(int(self.runs.demand * DEMAND_SHARE), LEAST_PLACES)
                num_tokens = min(num_tokens, self._most_captured)
            shape = self._captured_shape(num_tokens)
        room = self._rows.set_mixed(decode.seats, chunks, *shape, self._staging, guesses)
        if is_small:
            self._run_captured_mixed(shape)
        else:
            self._mixed_pass(shape, num_decode, max(chunk.step.end for chunk in chunks))
        num_logit_rows = self._decode_buckets.fill(max(num_wanted, 1))
        if num_wanted:
            self._run_head(num_logit_rows)
        return num_logit_rows, room

    def _captured_shape(self, num_tokens: int) -> Shape:
        """Of the captured pass that takes so many tokens, in up to MOST_CAPTURED_CHUNKS chunks."""
        num_rows = self._row_buckets.fill(num_tokens)
        num_parts = min(num_rows, MOST_CAPTURED_CHUNKS)
        return num_rows, num_parts, self._rows.most_tiles(num_rows, num_parts)

    def _run_captured_mixed(self, shape: Shape) -> None:
        """A captured pass may find any number of sequences in decode among its rows."""
        key = ("mixed", *shape, self._has_groups)
        self._graphs.run(key, lambda: self._mixed_pass(shape, shape[0]))

    def _run_head(self, num_logit_rows: int) -> None:
        self._graphs.run(("head", num_logit_rows), lambda: self._head_pass(num_logit_rows))

    def _mixed_pass(self, shape: Shape, decode_rows: int, longest: int | None = None) -> None:
        """longest: see `StepAttention.begin`."""
        rows = self._rows
        num_rows, _, num_tiles = shape
        rows.arrange(*shape)
        rows.begin(num_rows, has_chunks=True)
        if longest is None:  # a captured pass
            rows.predict(self._runs)
        self._attention.begin(
            rows, num_decode=decode_rows, num_tiles=num_tiles, has_groups=self._has_groups, longest=longest
        )
        hidden = self._model.forward(rows, num_rows, self._attention, self._seats.page_tables, self._pool)
        self._hidden[:num_rows].copy_(hidden)

    def _head_pass(self, num_logit_rows: int) -> None:
        hidden = self._hidden.index_select(0, self._rows.logit_rows[:num_logit_rows])
        self._logits[:num_logit_rows].copy_(self._model.logits(hidden))

    def _set_groups(self, decode: DecodeSet) -> None:
        """Finds the prefixes that sequences in decode share, when these are not the same as before."""
        if decode is self._grouped:
            return
        self._grouped = decode
        tables = plan_groups(
            [one.page_table for one in decode.sequences],
            [one.computed + 1 for one in decode.sequences],
            self.page_size,
            MIN_GROUP_ROWS,
            MIN_GROUP_TOKENS,
        )
        self._has_groups = bool(tables.segments)
        if self._has_groups:
            self._attention.load_groups(tables, decode.seats)

    def choose(self, num_rows: int, states: list[SamplingState], masks: Masks | None) -> Tensor:
        """Starts the choice of tokens and their way back; where they will be."""
        self._sampler.choose(
            self._logits[:num_rows],
            self._rows.logit_seats[:num_rows],
            self._tokens[:num_rows],
            states,
            masks,
            self._graphs,
            self._staging,
        )
        self._turn = (self._turn + 1) % len(self._results)
        result = self._results[self._turn][:num_rows]
        result.copy_(self._tokens[:num_rows], non_blocking=True)
        return result

    def record(self) -> torch.cuda.Event | None:
        """What has happened once the device has done all that it was given so far."""
        if self._device.type != "cuda":
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return event


class CudaLaunch:
    """A step under way. states: of the rows that are sampled, the first of num_rows."""

    def __init__(self, executor: CudaExecutor, num_rows: int, states: list[SamplingState], room: Room) -> None:
        self.room = room
        self._executor = executor
        self._num_rows = num_rows
        self._states = states
        self._result: Tensor | None = None
        self._done: torch.cuda.Event | None = None

    @torch.inference_mode()
    def sample(self, masks: Masks | None = None) -> None:
        if self._states:
            self._result = self._executor.choose(self._num_rows, self._states, masks)
        self._done = self._executor.record()

    def tokens(self) -> I32:
        if self._done is not None:  # also without tokens: the step's arrays lie in staging memory until it has run
            self._done.synchronize()
        if self._result is None:
            return np.empty(0, np.int32)
        return self._result.numpy()[: len(self._states)].copy()
