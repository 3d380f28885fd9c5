"""Grammars that clients write themselves, EBNF in the manner of GBNF, or Lark: looked at before xgrammar reads them.

Only what could make reading or compiling them take without bound is judged here; xgrammar's own messages say the rest.
"""

import re

from services.tokenizer.grammar.errors import Unenforceable
from services.tokenizer.grammar.limits import MAX_DEPTH, MAX_REPEAT

_EBNF_TOKEN = re.compile(
    r"""(?P<skip>\#[^\n]* | "(?:[^"\\\n]|\\.)*" | \[(?:[^\]\\\n]|\\.)*\])
      | (?P<open>[(]) | (?P<close>[)]) | \{\s*(?P<least>\d*)\s*,?\s*(?P<most>\d*)\s*\}""",
    re.VERBOSE | re.ASCII,
)
_LARK_TOKEN = re.compile(
    r"""(?P<skip>//[^\n]* | "(?:[^"\\\n]|\\.)*"i? | /(?:[^/\\\n]|\\.)+/[imslux]* )
      | (?P<open>[(\[]) | (?P<close>[)\]]) | ~\s*(?P<least>\d+)(?:\s*\.\.\s*(?P<most>\d+))?""",
    re.VERBOSE | re.ASCII,
)
_ROOT = re.compile(r"^[ \t]*root(?:\[[^\]]*\])?[ \t]*::=", re.MULTILINE)
_START = re.compile(r"^[?!]*start\b[^:\n]*:", re.MULTILINE)
_CLASS = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]", re.DOTALL)
_BEGINS_WITH_CARET = re.compile(r"\[\\(?:\^|x5e|u005e)", re.IGNORECASE)
_LARK_REFUSED = re.compile(r"^[ \t]*%(json|declare|override|extend|llguidance)\b", re.MULTILINE)


def checked(source: str) -> str:
    """The grammar as it is. Raises Unenforceable."""
    if not _ROOT.search(source):
        raise Unenforceable("has no rule 'root', where a grammar begins")
    _check(source, _EBNF_TOKEN)
    return source


def checked_lark(source: str) -> str:
    """As `checked`. Terminals match as if the text had no lexer, as with Lark's own Earley parser."""
    if not _START.search(source):
        raise Unenforceable("has no rule 'start', where a grammar begins")
    refused = _LARK_REFUSED.search(source)
    if refused is not None:
        raise Unenforceable(f"uses %{refused.group(1)}, which is not supported")
    _check(source, _LARK_TOKEN)
    for regex in _LARK_TOKEN.finditer(source):
        if regex.group().startswith("/") and any(map(_BEGINS_WITH_CARET.match, _CLASS.findall(regex.group()))):
            # xgrammar would take the class for its contrary
            raise Unenforceable("has a class that begins with '\\^' in an expression; that must stand elsewhere in it")
    return source


def _check(source: str, token: re.Pattern[str]) -> None:
    depth = 0
    for found in token.finditer(source):
        depth += (found.group("open") is not None) - (found.group("close") is not None)
        if depth > MAX_DEPTH:
            raise Unenforceable(f"has groups nested more than {MAX_DEPTH} deep")
        counts = [count for count in (found.group("least"), found.group("most")) if count]
        if any(len(count) > 9 or int(count) > MAX_REPEAT for count in counts):
            raise Unenforceable(f"has a repeat of more than {MAX_REPEAT}")
