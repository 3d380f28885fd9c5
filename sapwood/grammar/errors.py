"""What is wrong with a grammar, or with an answer to it."""


class GrammarError(ValueError):
    """message: a sentence without its subject; pointer: where in the grammar's JSON form, as a JSON pointer."""

    def __init__(self, message: str, pointer: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.pointer = pointer

    def __str__(self) -> str:
        return f"the grammar {self.message}" + (f" at #{self.pointer}" if self.pointer is not None else "")


class AnswerError(ValueError):
    """An answer is not what was asked for. at: the character from which on it cannot be."""

    def __init__(self, message: str, at: int = 0) -> None:
        super().__init__(message)
        self.at = at
