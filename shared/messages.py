"""Every message that crosses a stream, declared once.

Conventions: times are unix seconds (float); token ids and page ids are packed int32 and sequence ids packed
int64, little-endian, in `bytes` (see `shared.packing`); a new field always has a default, so that an older
reader skips it and an older writer's message still decodes. Trace context, protocol version and deadline
are fields of the stream entry (see `shared.streams`), not of the message.

Identity: the gateway names a request (`request_id`); each of its `n` choices is one *sequence* with a 63-bit
id that is a function of request id and choice (`sequence_id`), so a message that is delivered twice names the
same sequences both times and every receiver can drop the duplicate.
"""

import enum
import hashlib

import msgspec

from shared.errors import ErrorBody

PROTOCOL_VERSION = 1


def sequence_id(request_id: str, choice: int) -> int:
    """The id of a request's choice: 63 bits, the same wherever it is computed."""
    digest = hashlib.blake2b(f"{request_id}/{choice}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Message(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=True, gc=False):
    """Base of everything that crosses a stream."""


class Record(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """Base of the untagged parts of messages."""


# ---------------------------------------------------------------------------- gateway -> tokenizer


class TextPrompt(Message, frozen=True, kw_only=True):
    """A completion prompt as text."""

    text: str


class TokenPrompt(Message, frozen=True, kw_only=True):
    """A completion prompt as token ids."""

    token_ids: bytes


class ChatPrompt(Message, frozen=True, kw_only=True):
    """A conversation, rendered by the model's chat template.

    messages: the client's `messages`, each a JSON object; template_kwargs: extra names for the template."""

    messages: list[dict[str, object]]
    tools: list[dict[str, object]] | None = None
    template_kwargs: dict[str, object] = {}
    add_generation_prompt: bool = True
    continue_final_message: bool = False


class SamplingOptions(Record, frozen=True, kw_only=True):
    """Sampling as the client asked for it; None means the model's own default (generation_config.json)."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    seed: int = 0
    logit_bias: dict[int, float] = {}
    min_tokens: int = 0
    stop_token_ids: list[int] = []
    ignore_eos: bool = False


class Constraint(Record, frozen=True, kw_only=True):
    """What an answer must match, as the client gave it.

    kind: json_object, json_schema, regex, ebnf, lark, choice, structural_tag or grammar (of parts, as
    `sapwood.grammar.form` has it). source: the schema, tag, list of choices or grammar of parts as JSON, or the
    expression or grammar as it is; empty for json_object. param: the request's field that it came from, which errors
    name."""

    kind: str
    source: str
    param: str


class ToolCalling(Record, frozen=True, kw_only=True):
    """How an answer may call the tools of its `ChatPrompt`.

    choice: auto (it may), required (it must) or function (it must call the one `name`). parallel: more than one call
    in an answer is allowed. Which tools are strict stands in the tools themselves."""

    choice: str = "auto"
    name: str = ""
    parallel: bool = True


class Tokenize(Message, frozen=True, kw_only=True):
    """gateway -> tokenizer (`tokenize`): one prompt to encode and to have completed `n` times.

    reply_to: the address of the gateway (`Instance.address`); max_tokens None: up to the end of the context;
    max_tokens_param: the field that the client set it by; None: it did not, and the endpoint has a default.
    arrival: when the gateway took the request. tool_calling: None: the answer's text is not looked through for
    calls. separate_reasoning: what a model thinks before it answers comes in a channel of its own. kept_while: a key
    in the broker (without the deployment's prefix); while it is there somebody wants the answer though its gateway may
    be gone; empty: nobody would."""

    request_id: str
    reply_to: str
    prompt: TextPrompt | TokenPrompt | ChatPrompt
    sampling: SamplingOptions = SamplingOptions()
    n: int = 1
    max_tokens: int | None = None
    stop: list[str] = []
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    priority: int = 0
    cache_salt: str = ""
    arrival: float = 0.0
    constraint: Constraint | None = None
    tool_calling: ToolCalling | None = None
    separate_reasoning: bool = False
    kept_while: str = ""
    max_tokens_param: str | None = "max_tokens"


# -------------------------------------------------------------------------- tokenizer -> scheduler


class Sampling(Record, frozen=True, kw_only=True):
    """Sampling with every default resolved. temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 are off.

    logit_bias: token id -> addend. min_tokens: no stop id is sampled before that many output tokens."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    logit_bias: dict[int, float] = {}
    min_tokens: int = 0


class Generate(Message, frozen=True, kw_only=True):
    """tokenizer -> scheduler (`schedule`): continue `token_ids` once for every sequence id.

    sequence_ids[i] is choice i; its sampling seed is `choice_seed(sampling.seed, i)`. shard: the token
    shard that its output goes to. stop_token_ids: EOS ids included unless ignored. max_tokens: output
    tokens per sequence, >= 1, and prompt + max_tokens never passes the model's context. grammar: the key of the
    compiled grammar that the output must match, empty for free text."""

    request_id: str
    sequence_ids: list[int]
    shard: int
    token_ids: bytes
    sampling: Sampling
    stop_token_ids: list[int] = []
    max_tokens: int
    priority: int = 0
    cache_salt: str = ""
    arrival: float = 0.0
    grammar: str = ""


def choice_seed(seed: int, choice: int) -> int:
    """Seed of a request's choice: choice 0 keeps the client's seed, the others get unrelated ones."""
    return (seed + choice * 0x9E3779B97F4A7C15) % 2**63


class Abort(Message, frozen=True, kw_only=True):
    """gateway or tokenizer -> scheduler (`schedule`): nobody wants these sequences any more.

    May arrive before the `Generate` that it names; the scheduler remembers it for a while."""

    sequence_ids: list[int]


# ------------------------------------------------------- tokenizer, worker, scheduler -> tokenizer


class FinishReason(enum.StrEnum):
    """Why a sequence ended. `stop` and `length` as in OpenAI's API; the others never reach a 200 answer."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class AnswerFormat(Record, frozen=True, kw_only=True):
    """What an answer may hold beside plain text, and how the model writes it.

    tool_parser, reasoning_parser: names of formats that the tokenizers know; empty: not looked for. tool_names: the
    request's tools, by which formats without marks of their own are told from text. is_reasoning: the prompt has
    opened the reasoning already. keeps_reasoning: it stays in the content, with its marks; calls in it are none."""

    tool_parser: str = ""
    tool_names: list[str] = []
    reasoning_parser: str = ""
    is_reasoning: bool = False
    keeps_reasoning: bool = False


class Open(Message, frozen=True, kw_only=True):
    """tokenizer -> tokenizer (`tokens:k`): what the shard's owner needs to turn these sequences' tokens into
    text. Sent before the `Generate`, so it stands in the shard before their first token.

    prompt_tail: the prompt's last few tokens, context for the first output token's text. min_tokens: stop
    strings count once more output tokens than that are there. stop_token_ids: those the client asked for;
    eos_token_ids: the model's, none when ignored. Any of them ends the sequence and is not shown. format: None:
    the answer is plain text. kept: special tokens that are shown even where others are skipped. kept_while: as in
    `Tokenize`."""

    request_id: str
    reply_to: str
    sequence_ids: list[int]
    num_prompt_tokens: int
    prompt_tail: bytes
    stop: list[str] = []
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    arrival: float = 0.0
    min_tokens: int = 0
    stop_token_ids: list[int] = []
    eos_token_ids: list[int] = []
    format: AnswerFormat | None = None
    kept: list[str] = []
    kept_while: str = ""


class Ended(Record, frozen=True, kw_only=True):
    """A sequence's end. num_tokens: output tokens in all. stop_token_id: the client's or the model's stop id
    that was sampled (it is the last output token). error: set if and only if reason is ERROR. attempt: of the
    admission that ended (`Admit.attempt`)."""

    sequence_id: int
    reason: FinishReason
    num_tokens: int
    cached_tokens: int = 0
    stop_token_id: int | None = None
    error: ErrorBody | None = None
    attempt: int = 0


class Output(Message, frozen=True, kw_only=True):
    """worker or scheduler -> tokenizer (`tokens:k`): one step's output for all the shard's sequences.

    Parallel arrays, one entry a token: sequence_ids int64 [N], indices int32 [N] (0 is the sequence's first
    output token), token_ids int32 [N]. A receiver drops an index it has; it never sees a gap unless the
    sequence was taken over, and then the missing ones follow.

    cached_ids int64 [M], cached int32 [M]: sequences whose first output token is here and how many of their
    prompt tokens came from the cache; a stop string ends a sequence before its `Ended` says so.

    forced int32 [F]: places in the arrays of those tokens that a grammar left no choice about. worker, epoch: whose
    output this is; empty and 0 where the scheduler ends sequences by its own decision."""

    sequence_ids: bytes = b""
    indices: bytes = b""
    token_ids: bytes = b""
    ended: list[Ended] = []
    cached_ids: bytes = b""
    cached: bytes = b""
    forced: bytes = b""
    worker: str = ""
    epoch: int = 0


class Fence(Message, frozen=True, kw_only=True):
    """scheduler -> tokenizer (`tokens:k`): from here on the output of this worker's epoch counts for nothing.

    Its sequences go on elsewhere, from what stands before this entry; a worker that was only slow may still write
    behind it."""

    worker: str
    epoch: int


# ---------------------------------------------------------------------------- tokenizer -> gateway


class Channel(enum.IntEnum):
    """What a piece of an answer's text is part of."""

    CONTENT = 0
    REASONING = 1
    CALL_NAME = 2
    CALL_ARGUMENTS = 3


def tool_call_id(sequence_id: int, call: int) -> str:
    """The id of a sequence's call: the same wherever and however often it is computed."""
    return "call_" + hashlib.blake2b(f"{sequence_id}/{call}".encode(), digest_size=12).hexdigest()


class Delta(Record, frozen=True, kw_only=True):
    """New text of a sequence, in one channel. offset: characters sent before this text, in all channels together;
    num_tokens: output tokens that the text up to its end stands for (text may be held back: half a character, a
    possible stop string). num_prompt_tokens: said with a sequence's first delta at least; 0: not said.

    call: the tool call that a name or arguments belong to, counted from 0. A name is one delta, never empty and
    ahead of its arguments, whose pieces joined are JSON text."""

    sequence_id: int
    offset: int
    text: str
    num_tokens: int
    num_prompt_tokens: int = 0
    channel: Channel = Channel.CONTENT
    call: int = 0


class Finished(Record, frozen=True, kw_only=True):
    """A sequence's end as the client is told it; follows all its deltas.

    stop_reason: the stop string or stop token id that matched, None for EOS and for other reasons. reasoning_tokens:
    output tokens up to the end of the reasoning."""

    sequence_id: int
    reason: FinishReason
    num_prompt_tokens: int
    num_tokens: int
    cached_tokens: int = 0
    stop_reason: str | int | None = None
    error: ErrorBody | None = None
    forced_tokens: int = 0
    reasoning_tokens: int = 0


class Deltas(Message, frozen=True, kw_only=True):
    """tokenizer -> gateway (`reply:g`): what one step brought for all sequences of one gateway."""

    deltas: list[Delta] = []
    finished: list[Finished] = []


class Rejected(Message, frozen=True, kw_only=True):
    """tokenizer -> gateway (`reply:g`): the request will not be run."""

    request_id: str
    error: ErrorBody


# ----------------------------------------------------------------------------- scheduler -> worker


class Admit(Message, frozen=True, kw_only=True):
    """Start (or take over) a sequence.

    token_ids int32: prompt and the output so far; the first num_prompt of them are the prompt. cached: how
    many of them have their keys and values in pages already or will have once the sequences admitted
    before this one are prefilled (a worker prefills in order of admission, which makes that safe);
    cached < len(token_ids). page_table int32: pages in order, enough for token_ids and some room.
    copy_from: a page to copy over page_table[cached // page_size] before the first computed token, for a
    match that ends inside a page. attempt: how often this sequence was admitted before, on any worker.
    seed in sampling is the sequence's own. traceparent: W3C trace context of the request, if sampled. grammar: as in
    `Generate`; the output so far has passed it."""

    sequence_id: int
    shard: int
    token_ids: bytes
    num_prompt: int
    cached: int
    page_table: bytes
    copy_from: int | None = None
    sampling: Sampling
    stop_token_ids: list[int]
    max_tokens: int
    attempt: int = 0
    cached_prompt: int | None = None
    traceparent: str | None = None
    grammar: str = ""


class Grant(Message, frozen=True, kw_only=True):
    """More pages for a running sequence, appended to its page table (int32)."""

    sequence_id: int
    pages: bytes


class Drop(Message, frozen=True, kw_only=True):
    """Forget these sequences now; their pages may be named by any later command. Not answered."""

    sequence_ids: list[int]


class Retract(Message, frozen=True, kw_only=True):
    """As Drop, and answered in `Progress.retracted` once no more of their tokens will follow."""

    sequence_ids: list[int]


class Plan(Message, frozen=True, kw_only=True):
    """scheduler -> worker (`plan:w`): commands to apply in order.

    epoch: the worker start that they are meant for; number counts from 1 in an epoch without gaps. A worker
    skips a number it has applied and answers another epoch or a gap with a new epoch (`Hello`).

    Number 0 has no commands and asks what the worker holds; it answers with `Holdings`, and the next number is the
    one after `Holdings.applied`. term: grows with every scheduler; a worker heeds none with a lower term than it has
    seen, for that one leads no more."""

    epoch: int
    number: int
    commands: list[Admit | Grant | Drop | Retract]
    term: int = 0


# ------------------------------------------------------------------------------- gateway -> worker


TRACE_PATH = r"([0-9A-Za-z_@-][0-9A-Za-z_.@-]*/)*[0-9A-Za-z_@-][0-9A-Za-z_.@-]*\.json"
"""What all of the path of a trace must match: a file below the worker's folder, without `..` and hidden names."""


class Profile(Message, frozen=True, kw_only=True):
    """gateway -> worker (`control:w`): trace the next steps that compute something. path: of the file, `TRACE_PATH`,
    below the folder of the worker's `profile_file`; empty: that file. The worker's name is added to it."""

    steps: int
    path: str = ""


# ----------------------------------------------------------------------------- worker -> scheduler


class Hello(Message, frozen=True, kw_only=True):
    """worker -> scheduler (`events`): a worker with empty pages is there. epoch grows with every start.

    num_pages pages of page_size tokens, numbered 0 .. num_pages - 1; max_running: sequences at once;
    prefill_budget: prompt tokens it computes in one step at most."""

    worker: str
    epoch: int
    model: str
    num_pages: int
    page_size: int
    max_model_len: int
    max_running: int
    prefill_budget: int


class Progress(Message, frozen=True, kw_only=True):
    """worker -> scheduler (`events`): what happened since the last one; also the worker's sign of life (at
    least every `HEARTBEAT_S`).

    applied: number of the last plan applied. computed_ids int64 [M], computed int32 [M]: sequences in
    prefill and how many of their tokens now have keys and values. sequence_ids/indices/token_ids: output
    as in `Output`. ended: sequences that ended by themselves. retracted int64: answers to `Retract`.
    stalled int64: sequences that stand still for want of pages. number: counts from 1 in an epoch without gaps; one
    that is known has come twice, and before one that is not the next something was lost."""

    worker: str
    epoch: int
    applied: int
    at: float
    computed_ids: bytes = b""
    computed: bytes = b""
    sequence_ids: bytes = b""
    indices: bytes = b""
    token_ids: bytes = b""
    ended: list[Ended] = []
    retracted: bytes = b""
    stalled: bytes = b""
    number: int = 0


class Held(Record, frozen=True, kw_only=True):
    """A sequence that a worker has. num_outputs: output tokens told so far; page_table int32: empty while the prompt
    is being computed, for then it is not worth taking over."""

    sequence_id: int
    num_outputs: int = 0
    page_table: bytes = b""
    attempt: int = 0
    cached_prompt: int = 0


class Holdings(Message, frozen=True, kw_only=True):
    """worker -> scheduler (`events`): what the worker has, in answer to plan number 0. The output told so far is in
    the shards.

    hello: as it introduced itself in this epoch; applied: the last plan applied; number: of the last `Progress`."""

    hello: Hello
    applied: int
    number: int
    sequences: list[Held]


class Died(Message, frozen=True, kw_only=True):
    """whoever watches processes -> scheduler (`events`): the process of this worker has ended, so that nobody need wait
    until its silence has lasted long enough. Sent before it is started again."""

    worker: str


class Goodbye(Message, frozen=True, kw_only=True):
    """worker -> scheduler (`events`): this worker stops and computes nothing more."""

    worker: str
    epoch: int


HEARTBEAT_S = 1.0
"""How often a process says that it lives."""

HEARTBEAT_LAPSE_S = 5.0
"""A process not heard of for so long counts as gone."""


# ------------------------------------------------------------------------ every service -> registry


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """A process as the registry shows it (`shared.registry`): a JSON object in a Redis hash.

    at: when this was written. model, max_model_len: what a worker or tokenizer serves. address: where a gateway reads
    its replies (`reply:ADDRESS`); another one after every start, so that the sequences of a start that ended are told
    from those of the next. version: of Sapwood, empty if it is not installed as a package; protocol:
    `PROTOCOL_VERSION`."""

    service: str
    instance: str
    host: str
    pid: int
    started_at: float
    at: float
    is_ready: bool
    model: str | None = None
    max_model_len: int | None = None
    address: str = ""
    version: str = ""
    protocol: int = PROTOCOL_VERSION
