"""What is wrong with a grammar as a whole: rules that are missing, never end, or begin with themselves."""

from collections.abc import Callable

from sapwood.grammar.errors import GrammarError
from sapwood.grammar.form import Form
from sapwood.grammar.parts import MAX_REPEAT, AnyText, Choice, Json, Part, Ref, Regex, Repeat, Sequence, Text, children

MAX_DEPTH = 100
"""Of parts in parts. Servers count the levels of the JSON form, of which there are more."""

Lengths = Callable[[str], tuple[int, int | None]]
"""The (least, most) characters of a match of an expression; most None: no bound."""


def check(form: Form, lengths: Lengths) -> None:
    """Raises GrammarError. lengths: of a regex, which raises GrammarError or what else is wrong with one."""
    _Checker(form, lengths).check()


class _Checker:
    def __init__(self, form: Form, lengths: Lengths) -> None:
        self._form = form
        self._lengths: dict[str, tuple[int, int | None]] = {}
        self._length_of = lengths
        self._parts = {name: part for name, _, part in form.bodies()}
        self._pointers = {name: pointer for name, pointer, _ in form.bodies()}

    def check(self) -> None:
        for _, pointer, part in self._form.bodies():
            self._check_part(part, pointer)
        self._check_use()
        ending = self._rules_where(self._ends)
        for name in self._form.rules:
            if name not in ending:
                raise GrammarError(
                    f"has a rule {name[:80]!r} that never ends: all that it matches contains itself",
                    self._pointers[name],
                )
        empty = self._rules_where(self._can_be_empty)
        self._check_left_recursion(empty)
        if not self._has_text(self._form.root, self._rules_where(self._has_text)):
            raise GrammarError(
                "matches the empty text only, and an answer has at least one token", self._pointers[None]
            )

    def _check_part(self, part: Part, pointer: str, depth: int = 0) -> None:
        if depth > MAX_DEPTH:
            raise GrammarError(f"is nested more than {MAX_DEPTH} parts deep")
        match part:
            case Text(text=text) if any("\ud800" <= char <= "\udfff" for char in text):
                raise GrammarError("has half of a surrogate pair", pointer)
            case Regex(pattern=pattern):
                try:
                    self._lengths[pattern] = self._length_of(pattern)
                except GrammarError as error:
                    raise GrammarError(error.message, f"{pointer}/pattern") from None
            case Ref(name=name) if name not in self._form.rules:
                raise GrammarError(f"refers to a rule {name[:80]!r} that is not there", f"{pointer}/name")
            case Repeat(min=least, max=most) if least > (MAX_REPEAT if most is None else most):
                raise GrammarError(
                    f"has a repeat of {least} to {most} times: 'min' is more than 'max'", f"{pointer}/min"
                )
        for step, inner in children(part):
            self._check_part(inner, pointer + step, depth + 1)

    def _check_use(self) -> None:
        used: set[str] = set()
        front = [self._form.root]
        while front:
            part = front.pop()
            if isinstance(part, Ref) and part.name not in used:
                used.add(part.name)
                front.append(self._form.rules[part.name])
            front += [inner for _, inner in children(part)]
        for name in self._form.rules:
            if name not in used:
                raise GrammarError(
                    f"has a rule {name[:80]!r} that nothing leads to from the root", self._pointers[name]
                )

    def _rules_where(self, holds: Callable[[Part, set[str]], bool]) -> set[str]:
        """The least set of rules for which something holds, given that it holds for those of the set. Goes up and down
        the rules in turn, as most refer to those before them or to those behind."""
        found: set[str] = set()
        left = list(self._form.rules.items())
        while True:
            remaining = []
            for name, part in reversed(left):
                if holds(part, found):
                    found.add(name)
                else:
                    remaining.append((name, part))
            if len(remaining) == len(left):
                return found
            left = remaining

    def _ends(self, part: Part, known: set[str]) -> bool:
        match part:
            case Ref(name=name):
                return name in known
            case Repeat(min=0):
                return True
            case Repeat(item=_, min=1):
                return self._ends(children(part)[0][1], known)
            case Choice():
                return any(self._ends(inner, known) for _, inner in children(part))
        return all(self._ends(inner, known) for _, inner in children(part))

    def _can_be_empty(self, part: Part, known: set[str]) -> bool:
        match part:
            case Text(text=text):
                return not text
            case Regex(pattern=pattern):
                return self._lengths[pattern][0] == 0
            case Json():
                return False
            case AnyText():
                return True
            case Ref(name=name):
                return name in known
            case Repeat(min=0):
                return True
            case Repeat(min=1):
                return self._can_be_empty(children(part)[0][1], known)
            case Choice():
                return any(self._can_be_empty(inner, known) for _, inner in children(part))
        return all(self._can_be_empty(inner, known) for _, inner in children(part))

    def _has_text(self, part: Part, known: set[str]) -> bool:
        """Whether something else than the empty text matches."""
        match part:
            case Text(text=text):
                return bool(text)
            case Regex(pattern=pattern):
                return self._lengths[pattern][1] != 0
            case Json() | AnyText():
                return True
            case Ref(name=name):
                return name in known
        return any(self._has_text(inner, known) for _, inner in children(part))

    def _beginnings(self, part: Part, empty: set[str]) -> set[str]:
        """The rules that a match of the part may begin with."""
        match part:
            case Ref(name=name):
                return {name}
            case Sequence() | Repeat():  # of a repeat: the item, and the separator if that may be empty
                found: set[str] = set()
                for _, inner in children(part):
                    found |= self._beginnings(inner, empty)
                    if not self._can_be_empty(inner, empty):
                        break
                return found
        return {name for _, inner in children(part) for name in self._beginnings(inner, empty)}

    def _check_left_recursion(self, empty: set[str]) -> None:
        edges = {name: sorted(self._beginnings(part, empty)) for name, part in self._form.rules.items()}
        done: set[str] = set()
        for start in edges:
            path = [start]
            left = {start: iter(edges[start])}
            while path:
                following = next(left[path[-1]], None)
                if following is None:
                    done.add(path[-1])
                    del left[path.pop()]
                elif following in left:
                    way = " -> ".join(repr(name[:40]) for name in [*path[path.index(following) :], following][:10])
                    raise GrammarError(
                        f"has a rule that can begin with itself ({way}): say it with a repeat, or put the rule last",
                        self._pointers[following],
                    )
                elif following not in done:
                    path.append(following)
                    left[following] = iter(edges[following])
