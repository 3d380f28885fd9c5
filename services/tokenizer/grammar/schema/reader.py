"""The values of a schema's keywords, checked for their form."""

from decimal import Decimal
from typing import Any

from services.tokenizer.grammar.errors import Unenforceable
from services.tokenizer.grammar.schema.document import Document

LARGEST = 10**120
"""More than the numbers in answers can be, with 15 digits and two of an exponent."""


class Reader:
    """A keyword's value, checked for its form."""

    def __init__(self, document: Document, number: int, keyword: str) -> None:
        self.document = document
        self.number = number
        self.keyword = keyword
        self.value = document.value(number)[keyword]

    def wrong(self, what: str) -> Unenforceable:
        return Unenforceable(f"must be {what}", pointer=self.document.shown(self.number), keyword=self.keyword)

    def count(self) -> int:
        value = self.value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.wrong("a whole number, 0 or more")
        return value

    def number_(self) -> Decimal:
        if not isinstance(self.value, int | float) or isinstance(self.value, bool):
            raise self.wrong("a number")
        value = Decimal(repr(self.value))
        if not value.is_finite() or abs(value.adjusted()) > 300:
            raise self.wrong("a number that is not that large or small")
        return value

    def bound(self, *, is_upper: bool) -> Decimal | None:
        """None: beyond any number that is written."""
        if isinstance(self.value, int | float) and abs(self.value) > LARGEST and (self.value > 0) == is_upper:
            return None
        return self.number_()

    def string(self) -> str:
        if not isinstance(self.value, str):
            raise self.wrong("a string")
        return self.value

    def mapping(self) -> dict[str, Any]:
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        return self.value

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            raise self.wrong("true or false")
        return self.value

    def names(self) -> list[str]:
        return names_of(self.value, self.document.shown(self.number), self.keyword)


def names_of(value: object, pointer: str, keyword: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise Unenforceable("must be a list of strings", pointer=pointer, keyword=keyword)
    return value
