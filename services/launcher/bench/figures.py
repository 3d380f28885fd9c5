"""What is made of the answers: one row of figures a workload and load."""

from collections.abc import Sequence

import msgspec


class Answer(msgspec.Struct, frozen=True):
    """How one request went. Times in seconds of one clock that all clients share.

    gaps: between events that brought something. error: why it failed; then the rest says nothing."""

    started: float = 0.0
    first: float = 0.0
    last: float = 0.0
    gaps: list[float] = []
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    error: str = ""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one run. tpot_ms: mean over requests of the time after the first event, by token. Times of answers
    without an error; 0 where there is none."""

    server: str
    workload: str
    concurrency: int
    rate: float | None = None
    ok: int = 0
    errors: int = 0
    wall_s: float = 0.0
    out_tok_s: float = 0.0
    in_tok_s: float = 0.0
    req_s: float = 0.0
    ttft_p50_ms: float = 0.0
    ttft_p99_ms: float = 0.0
    itl_p50_ms: float = 0.0
    itl_p99_ms: float = 0.0
    tpot_ms: float = 0.0
    e2e_p50_s: float = 0.0
    e2e_p99_s: float = 0.0
    out_tokens: int = 0
    in_tokens: int = 0
    cached_tokens: int = 0
    first_error: str = ""


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def row_of(server: str, workload: str, concurrency: int, rate: float | None, answers: Sequence[Answer]) -> Row:
    good = [answer for answer in answers if not answer.error]
    errors = [answer.error for answer in answers if answer.error]
    first_error = errors[0] if errors else ""
    if not good:
        return Row(
            server=server, workload=workload, concurrency=concurrency, rate=rate, errors=len(errors),
            first_error=first_error,
        )  # fmt: skip
    wall = max(max(answer.last for answer in good) - min(answer.started for answer in good), 1e-9)
    ttft = [answer.first - answer.started for answer in good]
    e2e = [answer.last - answer.started for answer in good]
    gaps = [gap for answer in good for gap in answer.gaps]
    out, into = sum(answer.tokens_out for answer in good), sum(answer.tokens_in for answer in good)
    per_token = [(answer.last - answer.first) / max(1, answer.tokens_out - 1) for answer in good]
    return Row(
        server=server,
        workload=workload,
        concurrency=concurrency,
        rate=rate,
        ok=len(good),
        errors=len(errors),
        wall_s=round(wall, 3),
        out_tok_s=round(out / wall, 1),
        in_tok_s=round(into / wall, 1),
        req_s=round(len(good) / wall, 2),
        ttft_p50_ms=round(percentile(ttft, 0.5) * 1e3, 1),
        ttft_p99_ms=round(percentile(ttft, 0.99) * 1e3, 1),
        itl_p50_ms=round(percentile(gaps, 0.5) * 1e3, 2),
        itl_p99_ms=round(percentile(gaps, 0.99) * 1e3, 2),
        tpot_ms=round(sum(per_token) / len(per_token) * 1e3, 3),
        e2e_p50_s=round(percentile(e2e, 0.5), 3),
        e2e_p99_s=round(percentile(e2e, 0.99), 3),
        out_tokens=out,
        in_tokens=into,
        cached_tokens=sum(answer.tokens_cached for answer in good),
        first_error=first_error,
    )
