"""Request bodies to jobs: decode, check, resolve. Pure.

Raises InvalidRequest with the `param` at fault; whatever passes here has a meaning that is served.
"""

import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import msgspec

from services.gateway import tools, unsupported
from services.gateway.constraint import constraint_of
from services.gateway.conversation import check_depth, normalise
from services.gateway.openai_types import (
    DEFAULT_COMPLETION_TOKENS,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    StreamOptions,
)
from shared.errors import InvalidRequest
from shared.messages import ChatPrompt, Constraint, SamplingOptions, TextPrompt, TokenPrompt, ToolCalling
from shared.packing import pack_i32

MAX_SEQUENCES = 2048
"""Prompts times choices of one request."""

THINKING_SWITCHES = ("enable_thinking", "thinking")
"""What chat templates call the switch: Qwen's and most others, DeepSeek's."""

Prompt = TextPrompt | TokenPrompt | ChatPrompt


@dataclass(frozen=True, slots=True)
class Job:
    """A checked request. sampling.seed is the client's, or None in `seed` means one to be drawn per prompt.

    Choice c of prompt p is the answer's choice p * n + c. ignored: names in the body that mean nothing to us.
    max_tokens_param: the field that the client set max_tokens by, if it did.
    enforced: the field, if any, that asks for an answer to be held to something. timeout_s: the client's own;
    is_resumable: it may come back for the rest."""

    model: str
    prompts: list[Prompt]
    sampling: SamplingOptions
    has_seed: bool
    n: int
    max_tokens: int | None
    stop: list[str]
    include_stop_str_in_output: bool
    skip_special_tokens: bool
    priority: int
    cache_salt: str
    is_streamed: bool
    include_usage: bool
    continuous_usage: bool
    ignored: list[str] = field(default_factory=list)
    tool_calling: ToolCalling | None = None
    separate_reasoning: bool = False
    constraint: Constraint | None = None
    enforced: str | None = None
    max_tokens_param: str | None = None
    timeout_s: float | None = None
    is_resumable: bool = False

    def sampling_of(self, prompt: int) -> SamplingOptions:
        """The prompt's sampling; without the client's seed, one of its own, lest equal prompts get equal answers."""
        if self.has_seed:
            return self.sampling
        return msgspec.structs.replace(self.sampling, seed=secrets.randbits(63))


R = TypeVar("R", bound=GenerationRequest)
T = TypeVar("T")
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_chat = msgspec.json.Decoder(ChatRequest)
_completion = msgspec.json.Decoder(CompletionRequest)


def parse_chat(body: bytes) -> Job:
    request, ignored = _decode(body, _chat, ChatRequest, unsupported.CHAT_REFUSED)
    calling = tools.tool_calling(request.tools, request.tool_choice, request.parallel_tool_calls)
    job = _job(request, [_chat_prompt(request)], request.max_tokens, ignored)
    enforced = job.enforced
    if calling is not None:
        if job.constraint is not None:
            tools.check_beside_constraint(calling, job.constraint)
        enforced = enforced or tools.enforced_param(calling, request.tools or [])
    separate = request.separate_reasoning is not False
    return replace(job, tool_calling=calling, separate_reasoning=separate, enforced=enforced)


def parse_completion(body: bytes) -> Job:
    request, ignored = _decode(body, _completion, CompletionRequest, unsupported.COMPLETION_REFUSED)
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise InvalidRequest("'best_of' other than 'n' is not supported by this server.", param="best_of")
    max_tokens = request.max_tokens or DEFAULT_COMPLETION_TOKENS
    return _job(request, _completion_prompts(request.prompt), max_tokens, ignored)


def _decode(
    body: bytes, decoder: msgspec.json.Decoder[R], kind: type[R], refused: Mapping[str, tuple[object, ...]]
) -> tuple[R, list[str]]:
    with _bad_json_refused(body):
        if not body.isascii():
            body.decode()  # decoders look at no text that they skip, and others read that later
        given = _fields.decode(body)
        ignored = unsupported.check(given, kind.__struct_fields__, refused)
        return decoder.decode(body), ignored


def decode_body(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """A JSON body as the decoder's type. Raises InvalidRequest that names the field."""
    with _bad_json_refused(body):
        return decoder.decode(body)


_HIGH, _LOW = rb"\\u[dD][89abAB][0-9a-fA-F]{2}", rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_UNPAIRED = re.compile(rb"(?<!\\)(?:\\\\)*(?:(%b)(?!%b)|(?<!%b)(%b))" % (_HIGH, _LOW, _HIGH, _LOW))
"""An escape for half of a character. Before it a whole number of escaped backslashes."""


@contextmanager
def _bad_json_refused(body: bytes) -> Iterator[None]:
    try:
        yield
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {_fault(error, body)}.") from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.") from None


def _fault(error: Exception, body: bytes) -> str:
    """The decoder's complaint. What it says of half a character depends on how near the end of the body that is."""
    words = str(error)
    unpaired = _UNPAIRED.search(body) if any(word in words for word in ("truncated", "surrogate", "escape")) else None
    if unpaired is None:
        return words
    escape = unpaired[1] or unpaired[2]
    return f"{escape.decode()} is an unpaired surrogate (byte {unpaired.end() - len(escape)})"


_MISSING = re.compile(r"Object missing required field `(\w+)`")
_PATH = re.compile(r" - at (?:`key` in )?`\$\.?(.*)`$", re.DOTALL)


def _invalid(text: str) -> InvalidRequest:
    """A decoder's complaint in words that name the field."""
    at = _PATH.search(text)
    complaint = text[: at.start()] if at else text
    path = at.group(1).replace("[...]", "") if at else ""
    missing = _MISSING.match(complaint)
    if missing:
        param = f"{path}.{missing.group(1)}" if path else missing.group(1)
        return InvalidRequest(f"'{param}' is required.", param=param, code="missing_required_parameter")
    if not path:
        return InvalidRequest(f"The body must be a JSON object: {complaint}.")
    return InvalidRequest(f"'{path}' is not valid: {complaint[0].lower()}{complaint[1:]}.", param=path)


def _job(request: GenerationRequest, prompts: list[Prompt], max_tokens: int | None, ignored: list[str]) -> Job:
    n = request.n or 1
    if len(prompts) * n > MAX_SEQUENCES:
        raise InvalidRequest(
            f"At most {MAX_SEQUENCES} answers in one request, got {len(prompts)} prompts times n = {n}.",
            param="n" if len(prompts) == 1 else "prompt",
        )
    max_tokens = request.max_completion_tokens or max_tokens
    given = (name for name in ("max_completion_tokens", "max_tokens") if getattr(request, name) is not None)
    min_tokens = request.min_tokens or 0
    if max_tokens is not None and min_tokens > max_tokens:
        raise InvalidRequest(f"'min_tokens' is over the limit of {max_tokens} tokens.", param="min_tokens")
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    options = request.stream_options or StreamOptions()
    constraint = constraint_of(request)
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    return Job(
        model=request.model,
        prompts=prompts,
        sampling=_sampling(request, min_tokens),
        has_seed=request.seed is not None,
        n=n,
        max_tokens=max_tokens,
        max_tokens_param=next(given, None),
        stop=stop,
        include_stop_str_in_output=bool(request.include_stop_str_in_output),
        skip_special_tokens=request.skip_special_tokens is not False,
        priority=request.priority or 0,
        cache_salt=request.cache_salt or "",
        is_streamed=bool(request.stream),
        include_usage=bool(options.include_usage),
        continuous_usage=bool(options.continuous_usage_stats),
        ignored=ignored,
        constraint=constraint,
        enforced=constraint.param if constraint is not None else None,
        timeout_s=request.timeout,
        is_resumable=bool(request.resumable),
    )


def _sampling(request: GenerationRequest, min_tokens: int) -> SamplingOptions:
    return SamplingOptions(
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=0 if request.top_k == -1 else request.top_k,
        min_p=request.min_p,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=request.repetition_penalty,
        seed=request.seed or 0,
        logit_bias=request.logit_bias or {},
        min_tokens=min_tokens,
        stop_token_ids=request.stop_token_ids or [],
        ignore_eos=bool(request.ignore_eos),
    )


def _chat_prompt(request: ChatRequest) -> ChatPrompt:
    continues = bool(request.continue_final_message)
    if continues and request.add_generation_prompt:
        raise InvalidRequest(
            "'continue_final_message' and 'add_generation_prompt' exclude each other.", param="continue_final_message"
        )
    check_depth(request.chat_template_kwargs, "chat_template_kwargs")
    kwargs = dict(request.chat_template_kwargs or {})
    if request.reasoning_effort is not None:
        kwargs.setdefault("reasoning_effort", request.reasoning_effort)
    if request.reasoning_effort == "none":
        for switch in THINKING_SWITCHES:
            kwargs.setdefault(switch, False)
    return ChatPrompt(
        messages=normalise(request.messages),
        tools=request.tools or None,
        template_kwargs=kwargs,
        add_generation_prompt=not continues and request.add_generation_prompt is not False,
        continue_final_message=continues,
    )


def _completion_prompts(prompt: str | list[str | int | list[int]]) -> list[Prompt]:
    if isinstance(prompt, str):
        return [TextPrompt(text=prompt)]
    if type(prompt[0]) is int:
        try:
            return [TokenPrompt(token_ids=pack_i32(prompt))]  # type: ignore[arg-type]
        except TypeError:
            pass  # not all of it are
    kinds = set(map(type, prompt))
    if kinds == {str}:
        return [TextPrompt(text=text) for text in prompt]  # type: ignore[arg-type]
    if kinds == {list}:
        for place, token_ids in enumerate(prompt):
            if not token_ids:
                raise InvalidRequest(f"'prompt[{place}]' has no tokens.", param=f"prompt[{place}]")
        return [TokenPrompt(token_ids=pack_i32(token_ids)) for token_ids in prompt]  # type: ignore[arg-type]
    raise InvalidRequest("'prompt' must be all texts, all token ids, or all lists of token ids.", param="prompt")
