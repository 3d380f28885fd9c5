"""The radix index against a naive model: a set of token tuples."""

import random
import time
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from services.scheduler.core.radix_index import Node, RadixIndex
from shared.packing import pack_i32


@dataclass
class Owner:
    computed: int = 0


@dataclass(eq=False)
class Waiting:
    tokens: list[int]
    parked_at: Node | None = None
    parked_key: bytes = b""


@dataclass
class Store:
    """Inserts as the scheduler does, with pages from a counter, and remembers what the tree must know."""

    index: RadixIndex
    next_page: int = 0
    now: float = 0.0

    def insert(self, tokens: list[int], salt: str = "") -> None:
        self.now += 1
        data = pack_i32(tokens)
        match = self.index.match(data, len(tokens), salt)
        self.index.lock(match.node)
        whole = len(match.pages) * self.index.page_size
        count = -(-(len(tokens) - whole) // self.index.page_size)
        pages = list(range(self.next_page, self.next_page + count))
        self.next_page += count
        self.index.insert(match.node, data[whole * 4 :], pages, self.now)
        self.index.touch(match.node, self.now)
        self.index.unlock(match.node)
        self.index.take_superseded()


def common(a: tuple[int, ...], b: list[int]) -> int:
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


token_lists = st.lists(st.integers(0, 2), min_size=1, max_size=18)


@settings(max_examples=600, deadline=None)
@given(page_size=st.sampled_from([1, 2, 4]), sequences=st.lists(token_lists, max_size=12), probe=token_lists)
def test_a_match_is_the_longest_prefix_of_anything_inserted(
    page_size: int, sequences: list[list[int]], probe: list[int]
) -> None:
    store = Store(RadixIndex(page_size))
    for tokens in sequences:
        store.insert(tokens)
        store.index.check_integrity()
    match = store.index.match(pack_i32(probe), len(probe))
    assert match.num_tokens == max((common(tuple(tokens), probe) for tokens in sequences), default=0)
    assert len(match.pages) == match.num_tokens // page_size
    assert (match.copy_from is not None) == (match.num_tokens % page_size != 0)
    store.index.check_integrity()


@settings(max_examples=400, deadline=None)
@given(page_size=st.sampled_from([1, 4]), data=st.data())
def test_eviction_takes_the_least_recently_used_and_spares_the_locked(page_size: int, data: st.DataObject) -> None:
    store = Store(RadixIndex(page_size))
    for tokens in data.draw(st.lists(token_lists, min_size=1, max_size=10)):
        store.insert(tokens)
    locked = []
    for tokens in data.draw(st.lists(token_lists, max_size=3)):
        match = store.index.match(pack_i32(tokens), len(tokens))
        store.index.lock(match.node)
        locked.append((tokens[: len(match.pages) * page_size], match.pages))
    while True:
        leaves = [node for node in store.index.nodes() if not node.children and not node.locks]
        used = {page: node.last_use for node in leaves for page in node.pages}
        before = store.index.num_pages
        freed = store.index.evict(1)
        store.index.check_integrity()
        assert store.index.num_pages == before - len(freed)
        if not freed:
            break
        assert [used[page] for page in freed] == [min(used.values())]
    assert store.index.num_evictable == 0
    for tokens, pages in locked:
        assert store.index.match(pack_i32(tokens), len(tokens)).pages == pages


def test_eviction_shortens_a_leaf_from_its_end() -> None:
    store = Store(RadixIndex(2))
    store.insert([1, 2, 3, 4, 5, 6, 7])
    assert store.index.evict(2) == [2, 3]
    assert store.index.match(pack_i32([1, 2, 3, 4, 5, 6, 7]), 7).num_tokens == 4


def test_a_prompt_that_is_used_for_ever_costs_no_memory() -> None:
    """Nothing has to be evicted, so nothing but this clears away what was once said of a leaf's age."""
    store = Store(RadixIndex(2))
    for number in range(5000):
        store.insert([1, 2, 3, 4, number % 3, 6])
    assert len(store.index._leaves) < 200
    store.index.check_integrity()
    assert sorted(store.index.evict(100)) == [0, 1, 2, 3, 4]
    assert store.index.num_pages == 0


def test_salts_do_not_share() -> None:
    store = Store(RadixIndex(2))
    store.insert([1, 2, 3, 4], salt="a")
    assert store.index.match(pack_i32([1, 2, 3, 4]), 4, "a").num_tokens == 4
    assert store.index.match(pack_i32([1, 2, 3, 4]), 4, "b").num_tokens == 0
    assert store.index.match(pack_i32([1, 2, 3, 4]), 4).num_tokens == 0


def test_salts_that_hold_nothing_are_forgotten() -> None:
    index = RadixIndex(2)
    for number in range(3 * RadixIndex.MAX_EMPTY_ROOTS):
        index.match(pack_i32([1]), 1, f"tenant {number}")
    assert sum(1 for _ in index.roots()) <= RadixIndex.MAX_EMPTY_ROOTS + 1


def test_promised_tokens_count_but_are_not_copied_before_they_are_there() -> None:
    index = RadixIndex(4)
    owner = Owner()
    root = index.match(pack_i32([]), 0).node
    index.lock(root)
    node = index.extend(root, pack_i32([1, 2, 3, 4, 5, 6, 7, 8]), [0, 1], owner, 1.0)
    assert node is not None
    assert index.match(pack_i32([1, 2, 3, 4, 5, 6, 9]), 7).num_tokens == 4  # page 1 can't be copied yet
    owner.computed = 8
    match = index.match(pack_i32([1, 2, 3, 4, 5, 6, 9]), 7)
    assert (match.num_tokens, match.copy_from) == (6, 1)


def test_a_parked_sequence_is_woken_by_what_lengthens_its_match_alone() -> None:
    woken: list[Waiting] = []
    index = RadixIndex(2, lambda group: woken.extend(group))  # type: ignore[arg-type]
    store = Store(index)
    store.insert([1, 2])
    near, far = Waiting([1, 2, 3, 4, 5]), Waiting([1, 2, 9, 9, 9])
    for one in (near, far):
        data = pack_i32(one.tokens)
        index.park(one, index.match(data, 4), data)
    store.insert([1, 2, 3, 4])
    assert woken == [near]
    assert near.parked_at is None
    assert far.parked_at is not None
    index.check_integrity()
    index.unpark(far)
    assert far.parked_at is None


def test_a_parked_sequence_is_woken_when_its_match_is_evicted() -> None:
    woken: list[Waiting] = []
    index = RadixIndex(2, lambda group: woken.extend(group))  # type: ignore[arg-type]
    store = Store(index)
    store.insert([1, 2, 3, 4])
    one = Waiting([1, 2, 3, 4, 5])
    data = pack_i32(one.tokens)
    index.park(one, index.match(data, 4), data)
    index.evict(1)
    assert woken == [one]


@pytest.mark.slow
def test_ten_thousand_prompts_that_part_inside_one_page_match_fast() -> None:
    """Children are found by bisection, not by looking at each; 10,000 of them share the node's next tokens."""
    rng = random.Random(1)
    store = Store(RadixIndex(16))
    system = [rng.randrange(50_000) for _ in range(2008)]
    prompts = [system + [rng.randrange(50_000) for _ in range(56)] for _ in range(10_000)]
    for prompt in prompts:
        store.insert(prompt)
    datas = [pack_i32(prompt) for prompt in prompts[:1000]]
    started = time.perf_counter()
    for data in datas:
        assert store.index.match(data, 2063).num_tokens == 2063
    per_match = (time.perf_counter() - started) / 1000
    assert per_match < 500e-6  # about 30 us on an idle core
