"""Settings of a tokenizer process."""

from typing import Annotated

import msgspec

from services.tokenizer.tools.dialect import AUTO
from services.tokenizer.tools.formats import CHOICES
from services.tokenizer.tools.reasoning import FORMATS
from shared.settings import ModelSettings, help_


class Settings(ModelSettings, frozen=True, kw_only=True):
    """Turns prompts into token ids and token ids into text."""

    token_shards: Annotated[
        int, msgspec.Meta(ge=1, le=1024), help_("streams that output tokens are spread over; the same in every process")
    ] = 4
    encode_threads: Annotated[int, msgspec.Meta(ge=1, le=256), help_("threads that encode prompts")] = 2
    prompt_cache_mb: Annotated[
        int, msgspec.Meta(ge=0), help_("MiB of encoded messages remembered, so that a turn encodes what is new in it")
    ] = 64
    tool_parser: Annotated[
        str, help_(f"form of the model's tool calls: auto (by its chat template), none, {', '.join(CHOICES)}")
    ] = AUTO
    reasoning_parser: Annotated[
        str, help_(f"marks of the model's reasoning: auto (by its chat template), none, {', '.join(FORMATS)}")
    ] = AUTO
    grammar_processes: Annotated[
        int, msgspec.Meta(ge=1, le=64), help_("processes that compile grammars, in each tokenizer")
    ] = 2
    grammar_compile_timeout_s: Annotated[
        float, msgspec.Meta(gt=0), help_("processor time to compile a grammar; one that takes longer is refused")
    ] = 15.0
    grammar_compile_memory_mb: Annotated[
        int, msgspec.Meta(ge=64), help_("MiB that compiling a grammar may take; above: it is refused")
    ] = 1024
    grammar_cache_mb: Annotated[
        int, msgspec.Meta(ge=1), help_("MiB of compiled grammars kept in the broker, least recently used out first")
    ] = 256
