"""Answers as OpenAI writes them: plain ones as JSON, streamed ones as server-sent events. Pure.

An event is joined from bytes that are made once a stream and the text's own JSON, for it is written once a token.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from services.gateway.call import Choice, Totals
from services.gateway.deployment import Model
from shared.errors import ErrorBody
from shared.messages import Finished

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Shape:
    """How an endpoint's answers differ from the other's.

    text_key, text_open and text_close: the JSON around a chunk's text; opening: a choice's first chunk, if any."""

    id_prefix: str
    answer_object: str
    chunk_object: str
    text_open: bytes
    text_close: bytes
    opening: bytes | None


CHAT = Shape(
    id_prefix="chatcmpl-",
    answer_object="chat.completion",
    chunk_object="chat.completion.chunk",
    text_open=b'"delta":{"content":',
    text_close=b"}",
    opening=b'"delta":{"role":"assistant","content":""}',
)
COMPLETION = Shape(
    id_prefix="cmpl-",
    answer_object="text_completion",
    chunk_object="text_completion",
    text_open=b'"text":',
    text_close=b"",
    opening=None,
)


def usage(totals: Totals) -> dict[str, object]:
    return {
        "prompt_tokens": totals.prompt,
        "completion_tokens": totals.completion,
        "total_tokens": totals.prompt + totals.completion,
        "prompt_tokens_details": {"cached_tokens": totals.cached},
    }


def plain(shape: Shape, call_id: str, created: int, model: str, choices: Sequence[Choice], totals: Totals) -> bytes:
    """The whole answer; takes the choices' text."""
    return _encode(
        {
            "id": call_id,
            "object": shape.answer_object,
            "created": created,
            "model": model,
            "choices": [_plain_choice(shape, choice) for choice in choices],
            "usage": usage(totals),
        }
    )


def _plain_choice(shape: Shape, choice: Choice) -> dict[str, object]:
    assert choice.finished is not None
    text = choice.take()
    said: dict[str, object] = {"text": text}
    if shape is CHAT:
        said = {"message": {"role": "assistant", "content": text, "refusal": None}}
    return {
        "index": choice.index,
        **said,
        "logprobs": None,
        "finish_reason": choice.finished.reason.value,
        "stop_reason": choice.finished.stop_reason,
    }


class Events:
    """The events of one stream."""

    def __init__(self, shape: Shape, call_id: str, created: int, model: str) -> None:
        head = _encode({"id": call_id, "object": shape.chunk_object, "created": created, "model": model})
        self._shape = shape
        self._head = b"data: " + head[:-1] + b',"choices":['
        self._before: dict[int, bytes] = {}
        self._after = shape.text_close + b',"logprobs":null,"finish_reason":null}]}\n\n'

    def text(self, index: int, text: str, finished: Finished | None = None, totals: Totals | None = None) -> bytes:
        """New text of a choice, its end if it has come, and the usage so far if asked for."""
        before = self._before.get(index)
        if before is None:
            before = self._head + b'{"index":%d,' % index
            opening = self._opening(before, totals)
            before += self._shape.text_open
            self._before[index] = before
        else:
            opening = b""
        said = _encode(text)
        if not text.isascii():
            said = _without_line_separators(said)
        if finished is None and totals is None:
            return opening + before + said + self._after
        end = b"null" if finished is None else b'"%s"' % finished.reason.value.encode()
        stop = b"" if finished is None else b',"stop_reason":' + _encode(finished.stop_reason)
        return b"".join(
            (opening, before, said, self._shape.text_close, b',"logprobs":null,"finish_reason":', end, stop, b"}]")
        ) + self._tail(totals)

    def usage(self, totals: Totals) -> bytes:
        """The last event of a stream that was asked for its usage."""
        return self._head + b"]" + self._tail(totals)

    def _opening(self, before: bytes, totals: Totals | None) -> bytes:
        if self._shape.opening is None:
            return b""
        return before + self._shape.opening + b',"logprobs":null,"finish_reason":null}]' + self._tail(totals)

    def _tail(self, totals: Totals | None) -> bytes:
        return b"}\n\n" if totals is None else b',"usage":' + _encode(usage(totals)) + b"}\n\n"


def _without_line_separators(said: bytes) -> bytes:
    """Escapes what some clients take for the end of an event's line."""
    for separator, escaped in (
        (b"\xe2\x80\xa8", rb"\u2028"),
        (b"\xe2\x80\xa9", rb"\u2029"),
        (b"\xc2\x85", rb"\u0085"),
    ):
        if separator in said:
            said = said.replace(separator, escaped)
    return said


def error(body: ErrorBody) -> bytes:
    return _encode({"error": {"message": body.message, "type": body.type, "param": body.param, "code": body.code}})


def error_event(body: ErrorBody) -> bytes:
    """An error once the stream has begun; the stream ends after it."""
    return b"data: " + _without_line_separators(error(body)) + b"\n\n"


def error_headers(body: ErrorBody) -> dict[str, str]:
    """Retry-After, whole seconds, where the client may come back."""
    if body.retry_after_s is None and body.status not in (429, 503):
        return {}
    return {"Retry-After": str(max(1, math.ceil(body.retry_after_s or 1)))}


def model_card(model: Model) -> dict[str, object]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "sapwood",
        "root": model.name,
        "parent": None,
        "max_model_len": model.max_model_len,
    }


def model_list(models: Sequence[Model]) -> bytes:
    return _encode({"object": "list", "data": [model_card(model) for model in models]})


def encode(value: object) -> bytes:
    return _encode(value)
