"""Prompts to token ids: what a request asks for, checked and made explicit. Pure; safe to call from threads."""

import inspect
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from services.tokenizer.model_files import ModelFiles
from services.tokenizer.segments import SegmentEncoder
from services.tokenizer.tools import conversation
from services.tokenizer.tools.dialect import Dialect, dialect_of
from services.tokenizer.tools.plan import FREE, AnswerPlan, plain, plan
from shared.errors import InternalError, InvalidRequest, RequestError
from shared.messages import (
    ChatPrompt,
    Constraint,
    Generate,
    Open,
    Sampling,
    TextPrompt,
    Tokenize,
    TokenPrompt,
    sequence_id,
)
from shared.packing import pack_i32, unpack_i32

PROMPT_TAIL = 12
"""Prompt tokens that travel as context for the first output token's text: a character takes 4 at most."""

TEMPLATE_ERRORS = (
    TemplateError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""What a chat template raises on messages that it was not written for."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A request ready to run, once its constraint is compiled, if it has one."""

    open: Open
    generate: Generate
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt rendered and not encoded yet, and what its answer will hold."""

    text: str
    add_special_tokens: bool
    plan: AnswerPlan = FREE


def shard_of(request_id: str, token_shards: int) -> int:
    """The token shard of all of a request's sequences: the same in every process."""
    return zlib.crc32(request_id.encode()) % token_shards


def prompt_param(request: Tokenize) -> str:
    """The field of the client's request that holds the prompt."""
    return "messages" if isinstance(request.prompt, ChatPrompt) else "prompt"


class Encoder:
    """A model's prompts to token ids. dialect: how it is told of tools; None: as its chat template shows."""

    def __init__(
        self, model: ModelFiles, token_shards: int, dialect: Dialect | None = None, *, prompt_cache_bytes: int = 0
    ) -> None:
        """prompt_cache_bytes: of encoded parts of conversations that are remembered; 0: none are."""
        self._model = model
        self._segments = SegmentEncoder(model.backend, prompt_cache_bytes)
        self._dialect = dialect or dialect_of(model.tool_template)
        self._token_shards = token_shards
        longest_token = max(map(len, model.backend.get_vocab(with_added_tokens=True)), default=1)
        self._max_characters = longest_token * model.max_model_len
        signature = inspect.signature(model.chat.apply_chat_template)
        self._reserved = {"messages", *signature.parameters}

    def encode(
        self, requests: Sequence[Tokenize], *, defer_above: int | None = None
    ) -> list[Encoded | Text | RequestError]:
        """One result a request, in order. A prompt of more than `defer_above` characters is only rendered
        (`Text`), for `encode_text` to go on with, so that it does not hold up those that came with it."""
        results: list[Encoded | Text | RequestError] = []
        for request in requests:
            try:
                prompt = self._render(request)
                results.append(prompt if isinstance(prompt, Text) else self._complete(request, prompt, plain(request)))
            except RequestError as error:
                results.append(error)
        for add_special_tokens in (False, True):
            places = [
                place
                for place, result in enumerate(results)
                if isinstance(result, Text)
                and result.add_special_tokens == add_special_tokens
                and (defer_above is None or len(result.text) <= defer_above)
            ]
            prompts = [result for place in places if isinstance(result := results[place], Text)]
            if not prompts:
                continue
            salts = [requests[place].cache_salt for place in places]
            encoded = self._encode_batch([text.text for text in prompts], salts, add_special_tokens=add_special_tokens)
            for place, text, token_ids in zip(places, prompts, encoded, strict=True):
                results[place] = self._completed(requests[place], token_ids, text.plan)
        return results

    def encode_text(self, request: Tokenize, prompt: Text) -> Encoded | RequestError:
        """The rest of the work for a prompt that `encode` deferred."""
        [token_ids] = self._encode_batch(
            [prompt.text], [request.cache_salt], add_special_tokens=prompt.add_special_tokens
        )
        return self._completed(request, token_ids, prompt.plan)

    def _encode_batch(self, texts: list[str], salts: list[str], *, add_special_tokens: bool) -> "list[array[int]]":
        """Always as a batch: `encode` of one text keeps the interpreter lock, and with it every other thread."""
        if not add_special_tokens:
            return self._segments.encode(texts, salts)
        encodings = self._model.backend.encode_batch_fast(texts, add_special_tokens=True)
        return [array("i", encoding.ids) for encoding in encodings]

    def _completed(self, request: Tokenize, token_ids: "array[int]", answer: AnswerPlan) -> Encoded | RequestError:
        try:
            return self._complete(request, token_ids, answer)
        except RequestError as error:
            return error

    def _render(self, request: Tokenize) -> "Text | array[int]":
        """The prompt as text, or as token ids if the client gave those."""
        match request.prompt:
            case TextPrompt(text=text):
                rendered = Text(text, True, plain(request))
            case ChatPrompt() as chat:
                text = self._render_chat(chat, is_calling=request.tool_calling is not None)
                rendered = Text(text, False, plan(request, self._dialect, text))
            case TokenPrompt(token_ids=packed):
                return self._token_ids(packed)
        if len(rendered.text) > self._max_characters:  # saves the seconds that encoding it would take
            raise InvalidRequest(
                f"The prompt has {len(rendered.text)} characters, more than this model's maximum context length of "
                f"{self._model.max_model_len} tokens can hold.",
                param=prompt_param(request),
                code="context_length_exceeded",
            )
        return rendered

    def _token_ids(self, packed: bytes) -> "array[int]":
        try:
            token_ids = unpack_i32(packed)
        except ValueError:
            raise InternalError("the prompt's token ids came in broken") from None
        if token_ids:
            self._check_vocabulary(min(token_ids), "prompt")
            self._check_vocabulary(max(token_ids), "prompt")
        return token_ids

    def _render_chat(self, chat: ChatPrompt, *, is_calling: bool) -> str:
        if not self._model.has_chat_template:
            raise InvalidRequest(
                f"The model {self._model.name} has no chat template; use /v1/completions.", param="messages"
            )
        taken = self._reserved.intersection(chat.template_kwargs)
        if taken:
            raise InvalidRequest(f"{sorted(taken)[0]!r} is not for the client to set.", param="chat_template_kwargs")
        dialect = self._dialect
        try:
            if dialect.shows_tools:
                return self._apply_template(chat, conversation.fitted(chat.messages, dialect))
            messages = conversation.in_words(chat.messages, dialect.calls)
            if not (is_calling and chat.tools and dialect.calls):
                return self._apply_template(chat, messages)
            messages = conversation.introduced(messages, chat.tools, dialect.calls)
            try:
                return self._apply_template(chat, messages)
            except TemplateError:  # maybe one that has no system message
                return self._apply_template(chat, conversation.without_system(messages))
        except TEMPLATE_ERRORS as error:
            reason = str(error) or type(error).__name__
            raise InvalidRequest(
                f"The model's chat template refused the messages: {reason}", param="messages"
            ) from None

    def _apply_template(self, chat: ChatPrompt, messages: list[dict[str, Any]]) -> str:
        text = self._model.chat.apply_chat_template(
            messages,
            tools=chat.tools or None,
            chat_template=self._dialect.template,
            tokenize=False,
            add_generation_prompt=chat.add_generation_prompt,
            continue_final_message=chat.continue_final_message,
            **chat.template_kwargs,
        )
        assert isinstance(text, str)
        return text

    def _complete(self, request: Tokenize, token_ids: "array[int]", answer: AnswerPlan) -> Encoded:
        """The messages that start the request. Raises InvalidRequest for what the model cannot do."""
        if not token_ids:
            raise InvalidRequest("The prompt is empty: it has no tokens.", param=prompt_param(request))
        if request.n < 1:
            raise InvalidRequest(f"n must be at least 1, got {request.n}.", param="n")
        if not all(request.stop):
            raise InvalidRequest("A stop string must not be empty.", param="stop")
        max_tokens = self._max_tokens(request, len(token_ids))
        options = request.sampling
        for token_id in options.logit_bias:
            self._check_vocabulary(token_id, "logit_bias")
        for token_id in options.stop_token_ids:
            self._check_vocabulary(token_id, "stop_token_ids")
        eos_token_ids = [] if options.ignore_eos else list(self._model.eos_token_ids)
        sequence_ids = [sequence_id(request.request_id, choice) for choice in range(request.n)]
        return Encoded(
            open=Open(
                request_id=request.request_id,
                reply_to=request.reply_to,
                sequence_ids=sequence_ids,
                num_prompt_tokens=len(token_ids),
                prompt_tail=pack_i32(token_ids[-PROMPT_TAIL:]),
                stop=request.stop,
                include_stop_str_in_output=request.include_stop_str_in_output,
                skip_special_tokens=request.skip_special_tokens,
                arrival=request.arrival,
                min_tokens=options.min_tokens,
                stop_token_ids=options.stop_token_ids,
                eos_token_ids=eos_token_ids,
                format=answer.form,
                kept=list(answer.kept),
                kept_while=request.kept_while,
            ),
            constraint=answer.constraint,
            generate=Generate(
                request_id=request.request_id,
                sequence_ids=sequence_ids,
                shard=shard_of(request.request_id, self._token_shards),
                token_ids=pack_i32(token_ids),
                sampling=self._sampling(request),
                stop_token_ids=list(dict.fromkeys([*eos_token_ids, *options.stop_token_ids])),
                max_tokens=max_tokens,
                priority=request.priority,
                cache_salt=request.cache_salt,
                arrival=request.arrival,
            ),
        )

    def _max_tokens(self, request: Tokenize, num_prompt_tokens: int) -> int:
        """Output tokens allowed: what was asked for, or the rest of the context."""
        room = self._model.max_model_len - num_prompt_tokens
        asked = request.max_tokens
        if asked is not None and asked < 1:
            raise InvalidRequest(f"max_tokens must be at least 1, got {asked}.", param=request.max_tokens_param)
        if room < 1 or (asked is not None and asked > room):
            where = prompt_param(request)
            wanted = (
                f"your prompt has {num_prompt_tokens} tokens and leaves no room for an answer"
                if asked is None
                else f"you requested {num_prompt_tokens + asked} tokens ({num_prompt_tokens} in the {where}, "
                f"{asked} in the completion)"
            )
            raise InvalidRequest(
                f"This model's maximum context length is {self._model.max_model_len} tokens. However, {wanted}. "
                f"Please reduce the length of the {where} or completion.",
                param=where if room < 1 else request.max_tokens_param or where,
                code="context_length_exceeded",
            )
        max_tokens = room if asked is None else asked
        if request.sampling.min_tokens > max_tokens:
            raise InvalidRequest(
                f"min_tokens {request.sampling.min_tokens} is more than the {max_tokens} tokens that may be generated.",
                param="min_tokens",
            )
        return max_tokens

    def _check_vocabulary(self, token_id: int, param: str) -> None:
        if not 0 <= token_id < self._model.vocab_size:
            raise InvalidRequest(
                f"Token id {token_id} is not in the vocabulary of {self._model.vocab_size} tokens.", param=param
            )

    def _sampling(self, request: Tokenize) -> Sampling:
        asked, own = request.sampling, self._model.sampling
        return Sampling(
            temperature=own.temperature if asked.temperature is None else asked.temperature,
            top_p=own.top_p if asked.top_p is None else asked.top_p,
            top_k=max(own.top_k if asked.top_k is None else asked.top_k, 0),
            min_p=own.min_p if asked.min_p is None else asked.min_p,
            presence_penalty=asked.presence_penalty,
            frequency_penalty=asked.frequency_penalty,
            repetition_penalty=own.repetition_penalty if asked.repetition_penalty is None else asked.repetition_penalty,
            seed=asked.seed,
            logit_bias=asked.logit_bias,
            min_tokens=asked.min_tokens,
        )
