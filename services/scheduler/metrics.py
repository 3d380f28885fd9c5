"""What the scheduler shows to Prometheus."""

from prometheus_client import Counter, Gauge

from services.scheduler.core.scheduler import Scheduler

RUNNING = Gauge("sapwood_scheduler_running_sequences", "Sequences running", ["worker"])
WAITING = Gauge("sapwood_scheduler_waiting_sequences", "Sequences waiting", ["worker"])
PAGES = Gauge("sapwood_scheduler_pages", "Pages of a worker's pool", ["worker", "state"])
IMBALANCE = Gauge("sapwood_scheduler_ledger_imbalance", "Pages of a pool that are lost or in two places", ["worker"])
PENDING_PREFILL = Gauge("sapwood_scheduler_pending_prefill_tokens", "Admitted prompt tokens to compute", ["worker"])
PROMPT_TOKENS = Counter("sapwood_scheduler_prompt_tokens", "Prompt tokens admitted")
CACHED_TOKENS = Counter("sapwood_scheduler_cached_tokens", "Prompt tokens found in the prefix cache at admission")
RETRACTIONS = Counter("sapwood_scheduler_retractions", "Sequences retracted for want of pages")
ENDED = Counter("sapwood_scheduler_ended_sequences", "Sequences that ended, for any reason")
DECISION_SECONDS = Counter("sapwood_scheduler_decision_seconds", "Time spent deciding")
PER_WORKER = (RUNNING, WAITING, PENDING_PREFILL, IMBALANCE)


class Exporter:
    """Copies the core's numbers into the metrics; the core itself counts in plain integers."""

    def __init__(self) -> None:
        self._seen = dict.fromkeys(("prompt", "cached", "ended"), 0)
        self._retractions: dict[tuple[str, int], int] = {}
        self._workers: set[str] = set()

    def export(self, core: Scheduler) -> None:
        self._advance("prompt", core.num_prompt_tokens, PROMPT_TOKENS)
        self._advance("cached", core.num_cached_tokens, CACHED_TOKENS)
        self._advance("ended", core.num_ended, ENDED)
        for gone in self._workers - set(core.workers):
            for gauge in PER_WORKER:
                gauge.remove(gone)
            for state in ("free", "cached", "locked", "private"):
                PAGES.remove(gone, state)
        self._workers = set(core.workers)
        retractions = {}
        for name, worker in core.workers.items():
            RUNNING.labels(name).set(len(worker.running))
            WAITING.labels(name).set(len(worker.waiting))
            PENDING_PREFILL.labels(name).set(worker.pending_prefill)
            index, free = worker.index, worker.pool.num_free
            PAGES.labels(name, "free").set(free)
            PAGES.labels(name, "cached").set(index.num_evictable)
            PAGES.labels(name, "locked").set(index.num_pages - index.num_evictable)
            PAGES.labels(name, "private").set(worker.num_private)
            IMBALANCE.labels(name).set(worker.imbalance)
            key = (name, worker.epoch)
            retractions[key] = worker.num_retractions
            RETRACTIONS.inc(worker.num_retractions - self._retractions.get(key, 0))
        self._retractions = retractions

    def _advance(self, name: str, value: int, counter: Counter) -> None:
        counter.inc(value - self._seen[name])
        self._seen[name] = value
