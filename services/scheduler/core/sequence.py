"""A request's choice, from its arrival to its end."""

import enum
from dataclasses import dataclass, field

import msgspec

from services.scheduler.core.radix_index import TOKEN, Node
from shared.messages import Generate, Sampling, choice_seed

SUSPECT_CRASHES = 2


class Phase(enum.Enum):
    """WAITING for a place; RUNNING on a worker; RETRACTING: told to stop, its last tokens may be on their way;
    LINGERING: ended for its client, but still computing pages that others were promised; LOST: its worker is gone, or
    not known yet, and what it has said is being found out; ENDED."""

    WAITING = enum.auto()
    RUNNING = enum.auto()
    RETRACTING = enum.auto()
    LINGERING = enum.auto()
    LOST = enum.auto()
    ENDED = enum.auto()


@dataclass(slots=True, eq=False)
class Request:
    """What a request's sequences share. entry_id: its entry in `schedule`, acknowledged when the last one ends.
    grammar: key of the compiled grammar that each answer must match; empty for free text. poison: why it is not to be
    tried again, if it is not."""

    request_id: str
    entry_id: str
    shard: int
    first_sequence_id: int
    stop_token_ids: list[int]
    max_tokens: int
    priority: int
    cache_salt: str
    arrival: float
    deadline: float | None
    traceparent: str | None
    num_open: int
    grammar: str = ""
    poison: str = ""


@dataclass(slots=True, eq=False)
class Sequence:
    """tokens: prompt and output, int32 bytes. pages: its page table on its worker; the first `tree_pages` of them
    are the tree's (down to `node`, on which it holds a lock), the rest its own. computed: tokens whose keys and
    values are known to be there. number: order of arrival. num_matched: cached tokens where it waits or was
    admitted; matched_pages: whole pages of it. cached_prompt: the same at its first admission, which is what its
    client is told. admitted_tokens, prefill_left: tokens at admission, and how many of them are still to compute.
    outstanding: tokens that it may still come to and has no pages for. quiet_until: up to so many tokens another one
    is nothing but another one: no page becomes whole and the lease holds; 0: not known.
    crashes: workers that died while it ran; is_poison: and it was the only one there when the last of several did;
    runs_alone: where it runs nothing else may, as it was a suspect when it was admitted."""

    sequence_id: int
    choice: int
    request: Request
    sampling: Sampling
    tokens: bytearray
    num_prompt: int
    number: int
    phase: Phase = Phase.WAITING
    worker: str | None = None
    attempt: int = 0
    crashes: int = 0
    is_poison: bool = False
    runs_alone: bool = False
    cached_prompt: int = 0
    waiting_since: float = 0.0

    parked_at: Node | None = None
    parked_key: bytes = b""
    num_matched: int = 0
    queue_version: int = 0

    node: Node | None = None
    copy_node: Node | None = None
    pages: list[int] = field(default_factory=list)
    tree_pages: int = 0
    is_shadowed: bool = False
    computed: int = 0
    matched_pages: int = 0
    admitted_tokens: int = 0
    prefill_left: int = 0
    outstanding: int = 0
    quiet_until: int = 0

    @property
    def is_suspect(self) -> bool:
        """Whether it is to run alone, because more than one worker has died while it ran."""
        return self.crashes >= SUSPECT_CRASHES

    @property
    def num_tokens(self) -> int:
        return len(self.tokens) // TOKEN

    @property
    def num_output(self) -> int:
        return len(self.tokens) // TOKEN - self.num_prompt

    @property
    def final_tokens(self) -> int:
        """Tokens that it has at most in the end."""
        return self.num_prompt + self.request.max_tokens

    def reset(self) -> None:
        """Forgets everything about the worker it was on; that worker's bookkeeping is gone."""
        self.phase, self.worker = Phase.WAITING, None
        self.parked_at, self.parked_key, self.num_matched = None, b"", 0
        self.node = self.copy_node = None
        self.matched_pages = 0
        self.pages, self.tree_pages, self.is_shadowed = [], 0, False
        self.computed = self.admitted_tokens = self.prefill_left = 0
        self.outstanding = self.quiet_until = 0

    def learn(self, output: bytes) -> None:
        """Takes what is known of its output, if that is more than it has. output: int32 bytes from the first token."""
        if len(output) > self.num_output * TOKEN:
            self.tokens[self.num_prompt * TOKEN :] = output

    def take_back(self, num_output: int) -> None:
        """Forgets what it has of its output beyond so many tokens: that will be told again."""
        del self.tokens[(self.num_prompt + num_output) * TOKEN :]

    def slice(self, start: int, end: int) -> bytes:
        """Tokens start .. end - 1."""
        return bytes(self.tokens[start * TOKEN : end * TOKEN])


def sequences_of(
    message: Generate, entry_id: str, first_number: int, traceparent: str | None, deadline: float | None
) -> list[Sequence]:
    """A request's sequences in order of choice."""
    request = Request(
        request_id=message.request_id,
        entry_id=entry_id,
        shard=message.shard,
        first_sequence_id=message.sequence_ids[0],
        stop_token_ids=message.stop_token_ids,
        max_tokens=message.max_tokens,
        priority=message.priority,
        cache_salt=message.cache_salt,
        arrival=message.arrival,
        deadline=deadline,
        traceparent=traceparent,
        num_open=len(message.sequence_ids),
        grammar=message.grammar,
    )
    return [
        Sequence(
            sequence_id=sequence_id,
            choice=choice,
            request=request,
            sampling=msgspec.structs.replace(message.sampling, seed=choice_seed(message.sampling.seed, choice)),
            tokens=bytearray(message.token_ids),
            num_prompt=len(message.token_ids) // TOKEN,
            number=first_number + choice,
        )
        for choice, sequence_id in enumerate(message.sequence_ids)
    ]
