"""What a tokenizer process and its compiling children say to each other, as msgpack."""

import msgspec


class Setup(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Parent to child, once.

    tokenizer: the text of tokenizer.json; tokenizer_info: xgrammar's own JSON of the same, where a child before has
    made it. memory_bytes: what the child may take on top of what it has at the start; timeout_s: after which it ends
    by itself, should its parent be gone. max_characters: what an answer can have at most."""

    tokenizer: bytes
    vocab_size: int
    stop_token_ids: list[int]
    memory_bytes: int
    timeout_s: float
    max_characters: int
    tokenizer_info: bytes = b""


class Ready(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Child to parent, once."""

    tokenizer_info: bytes


class Job(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Parent to child. As `shared.messages.Constraint`."""

    kind: str
    source: str


class Compiled(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=True):
    """Child to parent. grammar: the value to keep (`shared.grammar`). is_last: the child has grown, and ends."""

    grammar: bytes
    is_last: bool = False


class Refused(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=True):
    """Child to parent. message: a sentence without its subject, which is the request's field."""

    message: str
    is_last: bool = False


Answer = Compiled | Refused
OUT_OF_MEMORY = "takes more memory to compile than is allowed: it is too complex"
FAILED = "cannot be compiled: the compiler has a fault that it brings out"
OUT_OF_TIME = "takes longer to compile than is allowed: it is too complex"
