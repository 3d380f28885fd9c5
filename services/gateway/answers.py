"""Answers as OpenAI writes them: plain ones as JSON, streamed ones as server-sent events. Pure.

An event is joined from bytes that are made once a stream and the text's own JSON, for it is written once a token.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from services.gateway.call import Choice, Totals
from services.gateway.deployment import Model
from services.gateway.event_id import EventId, Place
from services.gateway.parts import Part
from shared.errors import ErrorBody
from shared.messages import Channel, tool_call_id

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Shape:
    """How an endpoint's answers differ from the other's.

    text_open and text_close: the JSON around a chunk's text."""

    id_prefix: str
    answer_object: str
    chunk_object: str
    text_open: bytes
    text_close: bytes


CHAT = Shape(
    id_prefix="chatcmpl-",
    answer_object="chat.completion",
    chunk_object="chat.completion.chunk",
    text_open=b'"delta":{"content":',
    text_close=b"}",
)
COMPLETION = Shape(
    id_prefix="cmpl-",
    answer_object="text_completion",
    chunk_object="text_completion",
    text_open=b'"text":',
    text_close=b"",
)


def usage(totals: Totals) -> dict[str, object]:
    said: dict[str, object] = {
        "prompt_tokens": totals.prompt,
        "completion_tokens": totals.completion,
        "total_tokens": totals.prompt + totals.completion,
        "prompt_tokens_details": {"cached_tokens": totals.cached},
    }
    details = {"reasoning_tokens": totals.reasoning, "forced_tokens": totals.forced}
    if any(details.values()):
        said["completion_tokens_details"] = details
    return said


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
    parts = choice.take()
    said = {"message": _message(choice, parts)} if shape is CHAT else {"text": _text(parts, Channel.CONTENT)}
    return {
        "index": choice.index,
        **said,
        "logprobs": None,
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.finished.stop_reason,
    }


def _message(choice: Choice, parts: Sequence[Part]) -> dict[str, object]:
    """The assistant's message; its content is null when it only calls tools."""
    content: str | None = _text(parts, Channel.CONTENT)
    message: dict[str, object] = {"role": "assistant", "content": content, "refusal": None}
    if reasoning := _text(parts, Channel.REASONING):
        message["reasoning_content"] = reasoning
    if choice.num_calls:
        message["content"] = content or None
        message["tool_calls"] = _calls(choice, parts)
    return message


def _calls(choice: Choice, parts: Sequence[Part]) -> list[dict[str, object]]:
    names = {part.call: part.text for part in parts if part.channel is Channel.CALL_NAME}
    arguments = dict.fromkeys(names, "")
    for part in parts:
        if part.channel is Channel.CALL_ARGUMENTS:
            arguments[part.call] += part.text
    return [
        {
            "id": tool_call_id(choice.sequence_id, call),
            "type": "function",
            "function": {"name": name, "arguments": arguments[call]},
        }
        for call, name in names.items()
    ]


def _text(parts: Sequence[Part], channel: Channel) -> str:
    return "".join(part.text for part in parts if part.channel is channel)


class Numbering:
    """Ids for a stream's events. places: what the reader has had of each choice; has_usage: it has had the usage."""

    def __init__(self, answer_id: str, places: Sequence[Place], has_usage: bool = False) -> None:
        self._answer_id = answer_id
        self.places = list(places)
        self.has_usage = has_usage

    def number(self, events: list[bytes], choice: Choice, parts: Sequence[Part], is_opened: bool) -> None:
        """Puts an id before each of a choice's events: the opening if there is one, one a part, and the end if no part
        told it."""
        lengths = [0] * is_opened + [len(part.text) for part in parts]
        lengths += [0] * (len(events) - len(lengths))
        place = self.places[choice.index]
        for position, (event, length) in enumerate(zip(events, lengths, strict=True)):
            has_end = choice.finished is not None and position == len(events) - 1
            place = Place(is_begun=True, num_characters=place.num_characters + length, has_end=has_end)
            self.places[choice.index] = place
            events[position] = self._line() + event

    def number_usage(self, event: bytes) -> bytes:
        if self.has_usage:
            return b""
        self.has_usage = True
        return self._line() + event

    def _line(self) -> bytes:
        return b"id: %b\n" % str(EventId(self._answer_id, tuple(self.places), self.has_usage)).encode()


class Events:
    """The events of one stream. numbering: gives them ids and knows what the reader has had; None: they have none."""

    def __init__(
        self, shape: Shape, call_id: str, created: int, model: str, numbering: Numbering | None = None
    ) -> None:
        head = _encode({"id": call_id, "object": shape.chunk_object, "created": created, "model": model})
        self._shape = shape
        self._head = b"data: " + head[:-1] + b',"choices":['
        self._before: dict[int, bytes] = {}
        self._empty = shape.text_open + b'""' + shape.text_close
        self._after = b',"logprobs":null,"finish_reason":null}]}\n\n'
        self._numbering = numbering
        if numbering is not None:
            for index, place in enumerate(numbering.places):
                if place.is_begun:
                    self._before[index] = self._opening_of(index)

    def news(self, choice: Choice, totals: Totals | None = None) -> bytes:
        """What has come of a choice, an event each run of text; its end, if it has come, goes with the last text. With
        the usage so far if asked for. Takes the choice's text."""
        parts = choice.take()
        if self._numbering is not None and self._numbering.places[choice.index].has_end:
            return b""
        said = [self._said(choice, part) for part in parts]
        before = self._before.get(choice.index)
        is_opened = False
        if before is None:
            before = self._before[choice.index] = self._opening_of(choice.index)
            if self._shape is CHAT:
                said.insert(0, _opening(parts))
                is_opened = True
        elif len(said) == 1 and choice.finished is None and totals is None and self._numbering is None:
            return before + said[0] + self._after
        if choice.finished is not None and (not parts or parts[-1].channel is not Channel.CONTENT):
            # a chunk of its own for the end: nothing to add to content that may be null
            said.append(b'"delta":{}' if choice.num_calls or (parts and self._shape is CHAT) else self._empty)
        end = b',"logprobs":null,"finish_reason":null}]' + self._tail(totals)
        events = [before + one + end for one in said]
        if choice.finished is not None:
            reason = b',"logprobs":null,"finish_reason":' + _encode(choice.finish_reason)
            stop = b',"stop_reason":' + _encode(choice.finished.stop_reason) + b"}]"
            events[-1] = before + said[-1] + reason + stop + self._tail(totals)
        if self._numbering is not None:
            self._numbering.number(events, choice, parts, is_opened)
        return b"".join(events)

    def usage(self, totals: Totals) -> bytes:
        """The last event of a stream that was asked for its usage; nothing if its reader has had it."""
        event = self._head + b"]" + self._tail(totals)
        return event if self._numbering is None else self._numbering.number_usage(event)

    def _opening_of(self, index: int) -> bytes:
        return self._head + b'{"index":%d,' % index

    def _said(self, choice: Choice, part: Part) -> bytes:
        said = _encode(part.text)
        if not part.text.isascii():
            said = _without_line_separators(said)
        match part.channel:
            case Channel.CONTENT:
                return self._shape.text_open + said + self._shape.text_close
            case Channel.REASONING:
                return b'"delta":{"reasoning_content":' + said + b"}"
            case Channel.CALL_ARGUMENTS:
                return b'"delta":{"tool_calls":[{"index":%d,"function":{"arguments":%b}}]}' % (part.call, said)
            case Channel.CALL_NAME:
                call_id = tool_call_id(choice.sequence_id, part.call).encode()
                return (
                    b'"delta":{"tool_calls":[{"index":%d,"id":"%b","type":"function",'
                    b'"function":{"name":%b,"arguments":""}}]}' % (part.call, call_id, said)
                )

    def _tail(self, totals: Totals | None) -> bytes:
        return b"}\n\n" if totals is None else b',"usage":' + _encode(usage(totals)) + b"}\n\n"


def _opening(parts: Sequence[Part]) -> bytes:
    """A choice's first chunk. Its content stays null if something else comes first."""
    content = b'""' if not parts or parts[0].channel is Channel.CONTENT else b"null"
    return b'"delta":{"role":"assistant","content":%b}' % content


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
