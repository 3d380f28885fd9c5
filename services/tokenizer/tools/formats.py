"""The ways in which models write tool calls, by name: who reads them, and how they are spelled when a grammar or a
prompt has to."""

from dataclasses import dataclass

from services.tokenizer.tools import deepseek, hermes, json_calls, mistral, pythonic
from services.tokenizer.tools.calls import CallReader


@dataclass(frozen=True, slots=True)
class Spelling:
    """A call is begin, arguments as JSON, end, with %s in `begin` for the name; several have `separator` between them
    and all of them `opening` and `closing` around. trigger: what no text may hold without beginning calls; excluded:
    what no text may hold at all."""

    begin: str
    end: str
    separator: str = "\n"
    opening: str = ""
    closing: str = ""
    trigger: str = ""
    excluded: tuple[str, ...] = ()

    def calls(self, calls: list[tuple[str, str]]) -> str:
        """(name, arguments' JSON) each, as the model would write them."""
        written = self.separator.join(f"{self.named(name)}{arguments}{self.end}" for name, arguments in calls)
        return f"{self.opening}{written}{self.closing}"

    def named(self, name: str) -> str:
        """A call up to its arguments."""
        return self.begin.replace("%s", name)


@dataclass(frozen=True, slots=True)
class CallFormat:
    """A model family's calls. marks: texts that must come through even where they are special tokens.

    spelling: None: nothing but reading. enforced: the format that calls have where a grammar looks out for them in
    free text, if that is another one; None where it cannot."""

    name: str
    reader: type[CallReader]
    spelling: Spelling | None
    marks: tuple[str, ...] = ()
    enforced: str | None = None


_JSON = Spelling(begin='{"name": "%s", "arguments": ', end="}", trigger=json_calls.EXACT_BEGIN)
_LLAMA = Spelling(begin='{"name": "%s", "parameters": ', end="}", trigger=json_calls.EXACT_BEGIN)
_DEEPSEEK_MARKS = (
    deepseek.CALLS_BEGIN,
    deepseek.CALLS_END,
    deepseek.CALL_BEGIN,
    deepseek.CALL_END,
    deepseek.SEPARATOR,
)

FORMATS = {
    known.name: known
    for known in (
        CallFormat(
            "hermes",
            hermes.HermesReader,
            Spelling(
                begin=f'{hermes.BEGIN}\n{{"name": "%s", "arguments": ',
                end=f"}}\n{hermes.END}",
                trigger=hermes.BEGIN,
            ),
            marks=(hermes.BEGIN, hermes.END),
            enforced="hermes",
        ),
        CallFormat("json", json_calls.JsonReader, _JSON, enforced="json_exact"),
        CallFormat("json_exact", json_calls.ExactJsonReader, _JSON, enforced="json_exact"),
        CallFormat(
            "llama3_json",
            json_calls.JsonReader,
            _LLAMA,
            marks=(json_calls.PYTHON_TAG,),
            enforced="llama3_json_exact",
        ),
        CallFormat("llama3_json_exact", json_calls.ExactJsonReader, _LLAMA, enforced="llama3_json_exact"),
        CallFormat(
            "mistral",
            mistral.MistralReader,
            Spelling(
                opening=f"{mistral.TOOL_CALLS}[",
                begin='{"name": "%s", "arguments": ',
                end="}",
                separator=", ",
                closing="]",
                trigger=mistral.TOOL_CALLS,
            ),
            marks=(mistral.TOOL_CALLS, mistral.ARGS, mistral.CALL_ID),
            enforced="mistral",
        ),
        CallFormat(
            "mistral_args",
            mistral.MistralReader,
            Spelling(begin=f"{mistral.TOOL_CALLS}%s{mistral.ARGS}", end="", separator="", trigger=mistral.TOOL_CALLS),
            marks=(mistral.TOOL_CALLS, mistral.ARGS, mistral.CALL_ID),
            enforced="mistral_args",
        ),
        CallFormat("pythonic", pythonic.PythonicReader, None, marks=(pythonic.START, pythonic.END)),
        CallFormat(
            "deepseek_v3",
            deepseek.DeepSeekReader,
            Spelling(
                opening=deepseek.CALLS_BEGIN,
                begin=f"{deepseek.CALL_BEGIN}function{deepseek.SEPARATOR}%s\n{deepseek.FENCE}json\n",
                end=f"\n{deepseek.FENCE}{deepseek.CALL_END}",
                closing=deepseek.CALLS_END,
                trigger=deepseek.CALLS_BEGIN,
                excluded=(deepseek.CALL_BEGIN,),
            ),
            marks=_DEEPSEEK_MARKS,
            enforced="deepseek_v3",
        ),
        CallFormat(
            "deepseek_v3_1",
            deepseek.DeepSeekReader,
            Spelling(
                opening=deepseek.CALLS_BEGIN,
                begin=f"{deepseek.CALL_BEGIN}%s{deepseek.SEPARATOR}",
                end=deepseek.CALL_END,
                separator="",
                closing=deepseek.CALLS_END,
                trigger=deepseek.CALLS_BEGIN,
                excluded=(deepseek.CALL_BEGIN,),
            ),
            marks=_DEEPSEEK_MARKS,
            enforced="deepseek_v3_1",
        ),
    )
}

ENFORCED_ELSE = "json"
"""How calls that must be made are written by models whose own way a grammar cannot spell."""

CHOICES = tuple(name for name in FORMATS if not name.endswith("_exact"))
"""What an operator may set."""
