"""Why a constraint cannot be enforced, in the words that its client gets."""


class Unenforceable(Exception):
    """The message is a sentence without its subject, which is the request's field: "has an unmatched parenthesis".

    pointer: where in a schema, as a JSON pointer; keyword: which of its words is at fault."""

    def __init__(self, message: str, *, pointer: str | None = None, keyword: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.pointer = pointer
        self.keyword = keyword

    def __str__(self) -> str:
        where = "" if self.pointer is None else f" at #{self.pointer}"
        what = "" if self.keyword is None else f" (keyword {self.keyword!r})"
        return f"{self.message}{where}{what}"
