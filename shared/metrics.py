"""Prometheus metrics that every process has. A service's own metrics stand beside the code that counts."""

from prometheus_client import Counter, Gauge

ENTRIES_SENT = Counter("sapwood_stream_entries_sent", "Stream entries written", ["stream"])
ENTRIES_READ = Counter("sapwood_stream_entries_read", "Stream entries read", ["stream"])
DEAD_LETTERS = Counter("sapwood_stream_dead_letters", "Stream entries that could not be handled", ["stream"])
OUTBOX_ENTRIES = Gauge("sapwood_outbox_entries", "Broker commands that wait to be written")
ASYNCIO_TASKS = Gauge("sapwood_asyncio_tasks", "Tasks of this process's event loop that are not done")
