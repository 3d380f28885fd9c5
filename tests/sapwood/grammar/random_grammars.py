"""Grammars drawn at random, and texts that they match."""

import random
from typing import Any

from sapwood.grammar import Grammar, Part, any_text, choice, gen, json, ref, regex, repeat, seq, text

TEXTS = ("a", "b", "ab", "-", "\n", "é", '"', "\\", "[1]", "", "😀")
REGEXES = {
    "[ab]+": ("a", "ba", "abab"),
    "(a|b){0,3}": ("", "b", "aba"),
    r"\d\d?": ("1", "07"),
    "[^a\n]": ("b", "é", "😀", "-"),
    "a*b?": ("", "aaa", "b", "ab"),
    r"\w-": ("a-", "_-", "9-"),
    "(?:a|ab)(?:c|bcd)?": ("a", "abc", "abcd", "abbcd"),
}
SCHEMAS: tuple[tuple[Any, tuple[str, ...]], ...] = (
    ({"type": "integer"}, ("0", "-1", "7")),
    ({"enum": ["a", None]}, ('"a"', "null")),
    ({"type": "boolean"}, ("true", "false")),
)
NAMES = ("r", "s/t~")


class Draw:
    """Parts and matches from one source of chance."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def grammar(self) -> Grammar | None:
        """None: what was drawn is no grammar, as its rules are bad or it is empty."""
        rules = {name: self.part(3, behind=True) for name in NAMES[: self.chance.randint(0, 2)]}
        self.names = tuple(rules)
        try:
            return Grammar(self.part(4), rules)
        except ValueError:
            return None

    names: tuple[str, ...] = NAMES

    def part(self, depth: int, *, behind: bool = False) -> Part:
        """behind: what is drawn is not for the start of a rule, or most would begin with themselves."""
        kind = self.chance.choice(("text", "regex", "json", "any", "seq", "choice", "repeat", "capture", "rule"))
        if depth == 0 or (kind == "rule" and behind):
            kind = "text"
        match kind:
            case "text":
                return text(self.chance.choice(TEXTS))
            case "regex":
                return regex(self.chance.choice(tuple(REGEXES)))
            case "json":
                return json(self.chance.choice(SCHEMAS)[0])
            case "any":
                stop = self.chance.choice(("", "a", "ab", "aba"))
                return any_text(stop=stop or (), max_chars=self.chance.choice((None, 3)))
            case "seq":
                items = [
                    self.part(depth - 1, behind=behind and place == 0) for place in range(self.chance.randint(1, 3))
                ]
                return seq(*items)
            case "choice":
                return choice(*(self.part(depth - 1, behind=behind) for _ in range(self.chance.randint(1, 3))))
            case "repeat":
                least = self.chance.randint(0, 2)
                most = self.chance.choice((None, max(1, least), least + 2))
                between = self.part(1, behind=behind) if self.chance.random() < 0.4 else None
                return repeat(self.part(depth - 1, behind=behind), least, most, separator=between)
            case "capture":
                return gen(self.chance.choice("xy"), self.part(depth - 1, behind=behind))
        return ref(self.chance.choice(self.names)) if self.names else text("a")

    def match(self, form: dict[str, Any], budget: int = 40) -> str | None:
        """A text that a grammar in its JSON form matches; None: none was found within so many choices of rules."""
        rules = form.get("rules", {})
        self._budget = budget
        try:
            return self._match(form.get("root", form), rules)
        except _Spent:
            return None

    def _match(self, part: Any, rules: dict[str, Any]) -> str:
        if isinstance(part, str):
            return part
        match part["type"]:
            case "text":
                return str(part["text"])
            case "regex":
                return self.chance.choice(REGEXES[part["pattern"]])
            case "json":
                return self.chance.choice(next(texts for schema, texts in SCHEMAS if schema == part["schema"]))
            case "any_text":
                return self._free(part)
            case "sequence":
                return "".join(self._match(item, rules) for item in part["items"])
            case "choice":
                return self._match(self.chance.choice(part["items"]), rules)
            case "repeat":
                most = part.get("max", part["min"] + 3)
                count = self.chance.randint(part["min"], min(most, part["min"] + 3))
                out = ""
                for place in range(count):
                    if place and "separator" in part:
                        out += self._match(part["separator"], rules)
                    out += self._match(part["item"], rules)
                return out
            case "capture":
                return self._match(part["item"], rules)
        self._budget -= 1
        if self._budget < 0:
            raise _Spent
        return self._match(rules[part["name"]], rules)

    def _free(self, part: dict[str, Any]) -> str:
        while True:
            drawn = "".join(self.chance.choices("ab-é\n", k=self.chance.randint(0, part.get("max_chars", 5))))
            if not any(stop in drawn for stop in part.get("excludes", ())):
                return drawn

    def changed(self, drawn: str) -> str:
        """A text that is nearly the same."""
        at = self.chance.randint(0, len(drawn))
        match self.chance.randint(0, 2):
            case 0:
                return drawn[:at] + drawn[at + 1 :]
            case 1:
                return drawn[:at] + self.chance.choice('ab-1"[]é\ntru') + drawn[at:]
        return drawn[:at] + self.chance.choice('ab-1"[]é\n') + drawn[at + 1 :]


class _Spent(Exception):
    pass
