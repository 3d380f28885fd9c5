"""What the broker keeps of an answer that a client may come back for: its terms, and all of it once it is over.

Pure.
"""

from typing import Literal

import msgspec

from services.gateway.call import Call
from services.gateway.parts import Part
from shared.errors import ErrorBody
from shared.messages import Channel, Delta, Finished


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """How an answer is told. created: unix seconds; ignored: names in the request that mean nothing to us."""

    endpoint: Literal["chat", "completion"]
    model: str
    created: int
    is_streamed: bool
    include_usage: bool = False
    continuous_usage: bool = False
    ignored: list[str] = []


class KeptChoice(msgspec.Struct, frozen=True, kw_only=True):
    parts: list[Part]
    finished: Finished


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How an answer ended: with all its choices, or with an error."""

    choices: list[KeptChoice] = []
    error: ErrorBody | None = None


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """owner: name of the API key that asked; digest: of the request's URL and body. address, cursor: the reply stream
    that the answer comes in, and an entry before its first. deadline: unix seconds. claim: the broker's key of the
    Idempotency-Key, empty without one. ending: None while the answer is being made."""

    answer_id: str
    owner: str
    digest: bytes
    address: str
    cursor: str
    num_prompts: int
    n: int
    terms: Terms
    deadline: float | None = None
    claim: str = ""
    ending: Ending | None = None

    def new_call(self) -> Call:
        """An empty call for another reader of the answer."""
        return Call(
            self.answer_id, self.num_prompts, self.n, is_streamed=self.terms.is_streamed, is_kept=True, is_again=True
        )


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Record).decode


def ended(record: Record, call: Call) -> Record:
    """The record of an answer that is over."""
    if call.error is not None:
        return msgspec.structs.replace(record, ending=Ending(error=call.error))
    choices = []
    for choice in call.choices:
        assert choice.finished is not None
        assert choice.history is not None
        choices.append(KeptChoice(parts=choice.history.so_far(), finished=choice.finished))
    return msgspec.structs.replace(record, ending=Ending(choices=choices))


def replay(ending: Ending, call: Call) -> None:
    """Gives a call all that it has not had of an answer that is over."""
    if ending.error is not None:
        call.fail(ending.error)
        return
    for choice, kept in zip(call.choices, ending.choices, strict=True):
        offset = 0
        for part in kept.parts:
            choice.add(_delta(choice.sequence_id, offset, part, kept.finished), 0.0)
            offset += len(part.text)
        choice.finish(kept.finished)


def _delta(sequence_id: int, offset: int, part: Part, finished: Finished) -> Delta:
    return Delta(
        sequence_id=sequence_id,
        offset=offset,
        text=part.text,
        num_tokens=finished.num_tokens,
        num_prompt_tokens=finished.num_prompt_tokens,
        channel=Channel(part.channel),
        call=part.call,
    )
