"""The scheduler's books, published once a second: `<prefix>:ledger`, JSON, gone when it has not for a while."""

import msgspec

LEDGER_KEY = "ledger"
LEDGER_TTL_S = 10


class WorkerLedger(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's pages. pool = free + cached + locked + private + imbalance: cached pages serve nobody now, locked ones
    are prefixes of running sequences, private ones theirs alone; an imbalance is pages that were lost or are in two
    places. silent_s: since the worker was last heard of."""

    worker: str
    epoch: int
    pool: int
    free: int
    cached: int
    locked: int
    private: int
    imbalance: int
    running: int
    waiting: int
    silent_s: float


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """at: unix seconds; term: of the scheduler. unplaced: sequences without a worker."""

    scheduler: str
    at: float
    term: int
    sequences: int
    unplaced: int
    workers: list[WorkerLedger]
