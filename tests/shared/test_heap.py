import gc
import weakref
from collections.abc import Iterator

import pytest

from shared.heap import THRESHOLDS, settle_heap


@pytest.fixture(autouse=True)
def own_collector() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


class Knot:
    def __init__(self) -> None:
        self.itself = self


def test_what_is_there_is_not_walked_again() -> None:
    kept = [Knot() for _ in range(100)]
    settle_heap()
    assert gc.get_freeze_count() > 100
    assert not any(one is kept[0] for one in gc.get_objects())


def test_what_comes_after_is_still_collected() -> None:
    settle_heap()
    seen = weakref.ref(Knot())
    gc.collect()
    assert seen() is None


def test_collections_are_rare() -> None:
    settle_heap()
    assert gc.get_threshold() == THRESHOLDS
