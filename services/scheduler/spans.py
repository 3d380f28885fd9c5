"""The scheduler's span: how long a sequence waited for its place."""

from services.scheduler.core.effects import Waited
from shared import telemetry


def record_wait(waited: Waited, now: float) -> None:
    """`schedule.wait`, below the request's `tokenize`."""
    context = telemetry.sampled(waited.traceparent)
    if context is None:
        return
    telemetry.tracing().record(
        telemetry.SCHEDULE_WAIT,
        context,
        telemetry.stage_span_id(waited.sequence_id, telemetry.SCHEDULE_WAIT, waited.attempt),
        telemetry.stage_span_id(waited.request_sequence_id, telemetry.TOKENIZE),
        waited.since,
        now,
        {
            telemetry.INPUT_TOKENS: waited.num_tokens,
            telemetry.CACHED_TOKENS: waited.cached_tokens,
            telemetry.CHOICE: waited.choice,
            telemetry.WORKER: waited.worker,
            telemetry.ATTEMPT: waited.attempt,
            telemetry.QUEUE_POSITION: waited.num_waiting,
        },
    )
