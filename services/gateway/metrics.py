"""What the gateway counts. A histogram that is fed once a token does without prometheus_client's locks."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

LATENCY_BUCKETS = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)
TOKEN_BUCKETS = (
    *(0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.0125, 0.015, 0.02, 0.025, 0.03, 0.04),
    *(0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0),
)


class BucketCounts(Collector):
    """A histogram for one thread's hot path: an observation is a bisection and three additions."""

    def __init__(
        self, name: str, help_text: str, bounds: Sequence[float], registry: CollectorRegistry | None = REGISTRY
    ) -> None:
        self._name = name
        self._help = help_text
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        if registry is not None:
            registry.register(self)

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def collect(self) -> Iterator[HistogramMetricFamily]:
        total, buckets = 0, []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        yield HistogramMetricFamily(self._name, self._help, buckets=buckets, sum_value=self._sum)


REQUESTS = Counter("sapwood_requests", "HTTP requests answered; status 499: the client left", ["endpoint", "status"])
IN_FLIGHT = Gauge("sapwood_requests_in_flight", "Completion requests being worked on")
KEPT = Gauge("sapwood_answers_kept", "Answers being made that their clients may come back for")
PROMPT_TOKENS_IN_FLIGHT = Gauge("sapwood_prompt_tokens_in_flight", "Tokens of prompts being worked on, about")
TURNED_AWAY = Counter("sapwood_requests_turned_away", "Requests answered 429", ["why"])
TIME_TO_FIRST_TOKEN = Histogram(
    "sapwood_time_to_first_token_seconds", "Arrival to the first output of a request", buckets=LATENCY_BUCKETS
)
INTER_TOKEN_LATENCY = BucketCounts(
    "sapwood_inter_token_latency_seconds", "Time between a sequence's output tokens", TOKEN_BUCKETS
)
REQUEST_LATENCY = Histogram(
    "sapwood_request_latency_seconds", "Arrival to the end of a completion request", buckets=LATENCY_BUCKETS
)
PROMPT_TOKENS = Counter("sapwood_prompt_tokens", "Prompt tokens of answered requests")
COMPLETION_TOKENS = Counter("sapwood_completion_tokens", "Output tokens of answered requests")
CACHED_TOKENS = Counter("sapwood_cached_prompt_tokens", "Prompt tokens that came from the prefix cache")
REPLY_GAPS = Counter("sapwood_reply_gaps", "Requests ended because a part of their output was lost")
