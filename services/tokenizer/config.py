"""Settings of a tokenizer process."""

from typing import Annotated

import msgspec

from shared.settings import ModelSettings, help_


class Settings(ModelSettings, frozen=True, kw_only=True):
    """Turns prompts into token ids and token ids into text."""

    token_shards: Annotated[
        int, msgspec.Meta(ge=1, le=1024), help_("streams that output tokens are spread over; the same in every process")
    ] = 4
    encode_threads: Annotated[int, msgspec.Meta(ge=1, le=256), help_("threads that encode prompts")] = 2
