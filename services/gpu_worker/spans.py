"""The spans `prefill` and `decode` of sequences that are over."""

from services.gpu_worker.report import Stages
from shared import telemetry
from shared.messages import FinishReason


def record(stages: Stages, model: str, worker: str) -> None:
    """Prefill runs from admission to the first token, decode from there to the end. A sequence that was taken away
    before its first token has no decode; one that failed has an empty one, to be the parent of what follows."""
    tracing = telemetry.tracing()
    trace = telemetry.sampled(stages.traceparent)
    if not tracing.is_on or trace is None:
        return
    attributes: dict[str, telemetry.Value | None] = {
        telemetry.REQUEST_MODEL: model,
        telemetry.INPUT_TOKENS: stages.num_prompt,
        telemetry.CACHED_TOKENS: stages.cached,
        telemetry.WORKER: worker,
        telemetry.ATTEMPT: stages.attempt,
    }
    ended = stages.ended
    error = ended.error.message if ended is not None and ended.error is not None else None
    waited, prefill, decode = (
        telemetry.stage_span_id(stages.sequence_id, stage, stages.attempt)
        for stage in (telemetry.SCHEDULE_WAIT, telemetry.PREFILL, telemetry.DECODE)
    )
    middle = stages.over_at if stages.first_token_at is None else stages.first_token_at
    tracing.record(
        telemetry.PREFILL,
        trace,
        prefill,
        waited,
        stages.admitted_at,
        middle,
        attributes,
        error=error if stages.first_token_at is None else None,
    )
    if ended is None and stages.first_token_at is None:
        return
    reason = FinishReason.ABORT if ended is None else ended.reason
    attributes |= {
        telemetry.OUTPUT_TOKENS: stages.num_outputs,
        telemetry.RESPONSE_FINISH_REASONS: [str(reason)] if ended is not None else None,
        telemetry.ERROR_TYPE: "500" if error else None,
    }
    tracing.record(telemetry.DECODE, trace, decode, prefill, middle, stages.over_at, attributes, error=error)
