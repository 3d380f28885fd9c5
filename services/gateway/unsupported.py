"""Fields that clients may send and that are not served: refused by name, unless their value asks for nothing.

Anything that is in none of these tables nor in `openai_types.py` is unknown: it is left out and the answer says
so in the header `x-sapwood-ignored-fields`.
"""

from collections.abc import Iterable, Mapping

import msgspec

from shared.errors import InvalidRequest

HARMLESS = frozenset(
    {
        "user",
        "metadata",
        "parallel_tool_calls",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
    }
)
"""Labels and hints: an answer that does not use them is still the answer asked for."""

_NOTHING: tuple[object, ...] = ()
REFUSED: Mapping[str, tuple[object, ...]] = {
    # field -> the values that ask for nothing; null always does
    "allowed_token_ids": _NOTHING,
    "audio": _NOTHING,
    "bad_words": ([],),
    "chat_template": _NOTHING,
    "custom_logit_processor": _NOTHING,
    "documents": ([],),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "guided_whitespace_pattern": _NOTHING,
    "input_embeds": _NOTHING,
    "input_ids": _NOTHING,
    "kv_transfer_params": _NOTHING,
    "length_penalty": (1, 1.0),
    "logits_processors": ([],),
    "logprobs": (False,),
    "lora_path": _NOTHING,
    "modalities": (["text"],),
    "moderation": _NOTHING,
    "no_stop_trim": (False,),
    "prediction": _NOTHING,
    "prompt_embeds": _NOTHING,
    "prompt_logprobs": _NOTHING,
    "return_hidden_states": (False,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "service_tier": ("auto", "default"),
    "spaces_between_special_tokens": (True,),
    "stop_regex": ([],),
    "store": (False,),
    "suffix": ("",),
    "thinking_token_budget": _NOTHING,
    "top_logprobs": (0,),
    "truncate_prompt_tokens": _NOTHING,
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "web_search_options": _NOTHING,
}
CHAT_REFUSED = {**REFUSED, "add_special_tokens": (False,), "best_of": _NOTHING, "prompt": _NOTHING}
COMPLETION_REFUSED = {
    **REFUSED,
    "add_special_tokens": (True,),
    "continue_final_message": (False,),
    "logprobs": _NOTHING,  # 0 asks for the sampled token's own
    "messages": _NOTHING,
    "tool_choice": ("none",),
    "tools": ([],),
}


def check(
    given: Mapping[str, msgspec.Raw], served: Iterable[str], refused: Mapping[str, tuple[object, ...]]
) -> list[str]:
    """The names in `given` that mean nothing to us. Raises InvalidRequest for one that cannot be served."""
    ignored = []
    for name in given.keys() - served:
        if name in refused:
            value = msgspec.json.decode(given[name])
            if value is not None and not any(_is_same(value, harmless) for harmless in refused[name]):
                raise InvalidRequest(
                    f"'{name}' is not supported by this server; leave it out.", param=name, code="unsupported_parameter"
                )
        elif name not in HARMLESS:
            ignored.append(name)
    return sorted(ignored)


def _is_same(value: object, other: object) -> bool:
    """Equality that tells 0 from False."""
    return type(value) is type(other) and value == other
