"""What steps brought, gathered until it is told: to the scheduler in one message, to each token shard in one."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shared.messages import Ended, Held, Output, Progress
from shared.packing import pack_i32, pack_i64

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


@dataclass(slots=True)
class Tokens:
    """Output tokens as parallel arrays, in the order in which they came. forced: places of those that a grammar left
    no choice about."""

    sequence_ids: "array[int]" = field(default_factory=lambda: array("q"))
    indices: "array[int]" = field(default_factory=lambda: array("i"))
    token_ids: "array[int]" = field(default_factory=lambda: array("i"))
    forced: "array[int]" = field(default_factory=lambda: array("i"))

    def add(self, sequence_id: int, index: int, token_id: int) -> None:
        self.sequence_ids.append(sequence_id)
        self.indices.append(index)
        self.token_ids.append(token_id)

    def add_many(self, sequence_ids: I64, indices: I32, token_ids: I32) -> None:
        """Arrays [N]."""
        self.sequence_ids.frombytes(sequence_ids.tobytes())
        self.indices.frombytes(indices.tobytes())
        self.token_ids.frombytes(token_ids.tobytes())

    def add_forced(self, sequence_id: int, first_index: int, token_ids: "array[int]") -> None:
        """A run of one sequence."""
        count, place = len(token_ids), len(self.token_ids)
        self.forced.extend(range(place, place + count))
        self.sequence_ids.extend([sequence_id] * count)
        self.indices.extend(range(first_index, first_index + count))
        self.token_ids.extend(token_ids)

    def extend(self, later: "Tokens") -> None:
        self.forced.extend(len(self.token_ids) + place for place in later.forced)
        self.sequence_ids.extend(later.sequence_ids)
        self.indices.extend(later.indices)
        self.token_ids.extend(later.token_ids)


@dataclass(frozen=True, slots=True)
class Stages:
    """When a traced sequence's stages were, for its spans. decode is there if a token came out or it ended by
    itself; ended: None if it was taken away."""

    sequence_id: int
    traceparent: str
    attempt: int
    num_prompt: int
    num_outputs: int
    cached: int
    admitted_at: float
    first_token_at: float | None
    over_at: float
    ended: Ended | None


@dataclass(slots=True)
class Report:
    """News of one epoch. tokens, ended: by shard; cached: by shard and sequence id; computed: by sequence id;
    stalled: as of now, not news; holdings: what the engine has at the end of this report, if the scheduler asked."""

    epoch: int
    applied: int
    tokens: dict[int, Tokens] = field(default_factory=dict)
    ended: dict[int, list[Ended]] = field(default_factory=dict)
    cached: dict[int, dict[int, int]] = field(default_factory=dict)
    computed: dict[int, int] = field(default_factory=dict)
    retracted: list[int] = field(default_factory=list)
    stalled: list[int] = field(default_factory=list)
    stages: list[Stages] = field(default_factory=list)
    has_forced: bool = False
    holdings: list[Held] | None = None

    @property
    def is_decode_alone(self) -> bool:
        """Whether nothing happened but that running sequences got a token a step."""
        return not (self.ended or self.cached or self.computed or self.retracted or self.has_forced)

    def add_token(self, shard: int, sequence_id: int, index: int, token_id: int) -> None:
        self._tokens_of(shard).add(sequence_id, index, token_id)

    def add_tokens(self, shard: int, sequence_ids: I64, indices: I32, token_ids: I32) -> None:
        """Arrays [N], one entry a token."""
        self._tokens_of(shard).add_many(sequence_ids, indices, token_ids)

    def add_forced(self, shard: int, sequence_id: int, first_index: int, token_ids: "array[int]") -> None:
        """A run that a grammar left no choice about, from `first_index` on."""
        self._tokens_of(shard).add_forced(sequence_id, first_index, token_ids)
        self.has_forced = True

    def _tokens_of(self, shard: int) -> Tokens:
        tokens = self.tokens.get(shard)
        if tokens is None:
            tokens = self.tokens[shard] = Tokens()
        return tokens

    def add_cached(self, shard: int, sequence_id: int, num_tokens: int) -> None:
        """How much of the prompt of a sequence that has its first token came from the cache."""
        self.cached.setdefault(shard, {})[sequence_id] = num_tokens

    def add_end(self, shard: int, ended: Ended) -> None:
        self.ended.setdefault(shard, []).append(ended)

    def extend(self, later: "Report") -> None:
        """Takes in what came after, of the same epoch."""
        assert later.epoch == self.epoch
        for shard, tokens in later.tokens.items():
            if shard in self.tokens:
                self.tokens[shard].extend(tokens)
            else:
                self.tokens[shard] = tokens
        for shard, ended in later.ended.items():
            self.ended.setdefault(shard, []).extend(ended)
        for shard, cached in later.cached.items():
            self.cached.setdefault(shard, {}).update(cached)
        self.computed.update(later.computed)
        self.retracted += later.retracted
        self.stages += later.stages
        self.has_forced |= later.has_forced
        self.applied, self.stalled = later.applied, later.stalled
        self.holdings = later.holdings

    def progress(self, worker: str, at: float, number: int = 0) -> Progress:
        return Progress(
            worker=worker,
            number=number,
            epoch=self.epoch,
            applied=self.applied,
            at=at,
            computed_ids=pack_i64(self.computed),
            computed=pack_i32(self.computed.values()),
            sequence_ids=b"".join(pack_i64(tokens.sequence_ids) for tokens in self.tokens.values()),
            indices=b"".join(pack_i32(tokens.indices) for tokens in self.tokens.values()),
            token_ids=b"".join(pack_i32(tokens.token_ids) for tokens in self.tokens.values()),
            ended=[one for ended in self.ended.values() for one in ended],
            retracted=pack_i64(self.retracted),
            stalled=pack_i64(self.stalled),
        )

    def outputs(self, worker: str = "") -> Iterator[tuple[int, Output]]:
        """(shard, its tokens and ends) for every shard that has any."""
        nothing = Tokens()
        for shard in self.tokens.keys() | self.ended.keys():
            tokens = self.tokens.get(shard, nothing)
            cached = self.cached.get(shard, {})
            yield (
                shard,
                Output(
                    sequence_ids=pack_i64(tokens.sequence_ids),
                    indices=pack_i32(tokens.indices),
                    token_ids=pack_i32(tokens.token_ids),
                    ended=self.ended.get(shard, []),
                    cached_ids=pack_i64(cached),
                    cached=pack_i32(cached.values()),
                    forced=pack_i32(tokens.forced),
                    worker=worker,
                    epoch=self.epoch,
                ),
            )
