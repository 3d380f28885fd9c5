"""The worker's metrics."""

from prometheus_client import Counter, Gauge, Histogram

STEPS = Counter("sapwood_worker_steps", "Steps computed")
STEP_SECONDS = Histogram(
    "sapwood_worker_step_seconds",
    "Time of a step: forward pass, sampling and bookkeeping",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
)
TOKENS = Counter("sapwood_worker_tokens", "Tokens whose keys and values were computed", ["kind"])
PREFILL_TOKENS = TOKENS.labels("prefill")
DECODE_TOKENS = TOKENS.labels("decode")
PREFILLING = Gauge("sapwood_worker_prefilling_sequences", "Sequences whose prompt is being computed or waits for it")
DECODING = Gauge("sapwood_worker_decoding_sequences", "Sequences that get a token every step")
STALLED = Gauge("sapwood_worker_stalled_sequences", "Sequences that stand still for want of pages")
PAGES = Gauge("sapwood_worker_pages", "Pages of the KV pool")
RESETS = Counter("sapwood_worker_resets", "Times that the worker dropped everything and started afresh")
FAILED_STEPS = Counter("sapwood_worker_failed_steps", "Steps that ended in an exception")
FORCED_TOKENS = Counter("sapwood_worker_forced_tokens", "Output tokens that a grammar left no choice about")
GUESSED_RUNS = Counter(
    "sapwood_worker_guessed_runs", "Forced runs that a GPU computed before the grammar was asked", ["outcome"]
)
GUESSED_RIGHT = GUESSED_RUNS.labels("right")
GUESSED_WRONG = GUESSED_RUNS.labels("wrong")
GRAMMAR_BYTES = Gauge("sapwood_worker_grammar_bytes", "Compiled grammars that are kept in memory")
GRAMMAR_ERRORS = Counter("sapwood_worker_grammar_errors", "Compiled grammars that were gone or could not be used")
