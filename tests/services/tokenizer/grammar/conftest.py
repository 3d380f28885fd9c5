import pytest

from tests.services.tokenizer.grammar.random_walk import Walker, byte_vocabulary


@pytest.fixture(scope="session")
def walker() -> Walker:
    return Walker(byte_vocabulary())
