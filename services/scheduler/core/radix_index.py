"""RadixAttention's index: which token prefixes a worker has in pages (https://arxiv.org/abs/2312.07104).

A compressed tree over token ids, kept as little-endian int32 bytes. Edges are page-aligned: an edge of n tokens has
ceil(n / page_size) pages, and only a leaf may end inside its last page (a *tail*). A match is token granular: what
it shares beyond the last whole page is a page to copy.

A node's tokens may be *promised*: its owner, a running sequence, is still to compute them. They count as present,
because a worker prefills in order of admission; they can't be copied from before they are computed.

Waiting sequences are parked where their match ends, under the page of tokens that would make it longer, so that a new
node costs work for those alone whose match it changes.
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

TOKEN = 4  # bytes of a token id


class Owner(Protocol):
    """The sequence that computes a promised node."""

    computed: int


class Parked(Protocol):
    """A waiting sequence, in the index's eyes."""

    parked_at: "Node | None"
    parked_key: bytes


class Node:
    """An edge and what lies below it. start: position of the edge's first token."""

    __slots__ = ("children", "key", "last_use", "locks", "order", "owner", "pages", "parent", "parked", "start")

    def __init__(self, parent: "Node | None", key: bytes, pages: list[int], start: int, last_use: float) -> None:
        self.parent = parent
        self.key = key
        self.pages = pages
        self.start = start
        self.last_use = last_use
        self.locks = 0
        self.owner: Owner | None = None
        self.children: dict[bytes, Node] = {}
        self.order: list[bytes] = []  # the children's keys, sorted: neighbours share the longest prefixes
        self.parked: dict[bytes, set[Parked]] = {}

    @property
    def num_tokens(self) -> int:
        return len(self.key) // TOKEN

    @property
    def end(self) -> int:
        return self.start + len(self.key) // TOKEN

    @property
    def computed_end(self) -> int:
        """Position up to which this node's keys and values are there."""
        if self.owner is None:
            return self.end
        return min(self.end, max(self.start, self.owner.computed))


@dataclass(slots=True)
class Match:
    """The longest known prefix of some tokens.

    node: where it ends on a page border; pages: that far; num_tokens: with the part of `copy_from`, a page whose
    first num_tokens % page_size tokens are shared; copy_node holds that page."""

    node: Node
    pages: list[int]
    num_tokens: int
    copy_from: int | None = None
    copy_node: Node | None = None


class RadixIndex:
    """The prefix tree of one worker. A salt roots a tree of its own."""

    MAX_EMPTY_ROOTS = 1024

    def __init__(self, page_size: int, on_rematch: Callable[[Iterable[Parked]], None] = lambda _: None) -> None:
        """on_rematch is told which parked sequences may have another match now; they are no longer parked."""
        self.page_size = page_size
        self.num_pages = 0
        self.num_evictable = 0
        self._block = page_size * TOKEN
        self._roots: dict[str, Node] = {}
        self._most_roots = self.MAX_EMPTY_ROOTS  # before those without a use are looked for
        self._leaves: list[tuple[float, int, Node]] = []  # heap of unlocked leaves, with stale entries
        self._pushes = 0
        self._sweep_at = 64
        self._superseded: list[int] = []
        self._on_rematch = on_rematch

    # ------------------------------------------------------------------------------------- matching

    def match(self, tokens: bytes, limit: int, salt: str = "") -> Match:
        """The longest prefix of the first `limit` tokens that is here. Splits an edge where the match ends."""
        block = self._block
        node = self._roots.get(salt) or self._new_root(salt)
        target = tokens[: limit * TOKEN]
        pages: list[int] = []
        at = 0
        while True:
            child = node.children.get(target[at : at + block]) if len(target) - at >= block else None
            if child is None:
                return self._match_tail(node, target, at, pages)
            if len(child.key) % block == 0 and target.startswith(child.key, at):
                pages += child.pages
                at += len(child.key)
                node = child
                continue
            whole = _common_bytes(child.key, target, at) // block
            assert whole >= 1
            if whole * block < len(child.key):
                upper = self._split(child, whole)
            else:
                upper = child
            pages += upper.pages
            return self._match_tail(upper, target, at + whole * block, pages)

    def _new_root(self, salt: str) -> Node:
        if len(self._roots) >= self._most_roots:
            self._roots = {
                name: root for name, root in self._roots.items() if root.children or root.parked or root.locks
            }
            self._most_roots = len(self._roots) + self.MAX_EMPTY_ROOTS
        root = self._roots[salt] = Node(None, b"", [], 0, 0.0)
        return root

    def _match_tail(self, node: Node, target: bytes, at: int, pages: list[int]) -> Match:
        """Completes a match that has no further whole page with the best part of one below `node`."""
        num_tokens = at // TOKEN
        rest = target[at : at + self._block]
        best, source = 0, None
        if rest and node.order:
            place = bisect_left(node.order, rest)
            for key in node.order[max(0, place - 1) : place + 1]:
                child = node.children[key]
                shared = min(_common_bytes(key, rest, 0) // TOKEN, child.computed_end - child.start)
                if shared > best:
                    best, source = shared, child
        if source is None:
            return Match(node, pages, num_tokens)
        return Match(node, pages, num_tokens + best, source.pages[0], source)

    # -------------------------------------------------------------------------------------- locking

    def lock(self, node: Node) -> None:
        """Keeps the node and all above it from eviction."""
        at: Node | None = node
        while at is not None:
            if at.locks == 0:
                self.num_evictable -= len(at.pages)
            at.locks += 1
            at = at.parent

    def unlock(self, node: Node) -> None:
        at: Node | None = node
        while at is not None:
            assert at.locks > 0, "unlocked more often than locked"
            at.locks -= 1
            if at.locks == 0:
                self.num_evictable += len(at.pages)
                self._offer(at)
            at = at.parent

    def touch(self, node: Node, now: float) -> None:
        """Marks the node's path as used. The node must be locked: an unlocked leaf's place in the order is fixed."""
        at: Node | None = node
        while at is not None:
            at.last_use = now
            at = at.parent

    # -------------------------------------------------------------------------------------- growing

    def extend(self, node: Node, tokens: bytes, pages: list[int], owner: Owner | None, now: float) -> Node | None:
        """Appends whole pages below a locked node; the new node is locked as its parent's locker's.

        The caller's lock moves from `node` to the returned node. None, and nothing changes, when another
        sequence has put the same page there."""
        assert tokens and len(tokens) == len(pages) * self._block and node.locks > 0
        first = tokens[: self._block]
        if first in node.children:
            return None
        self.num_pages += len(pages)
        if (
            node.locks == 1
            and not node.children
            and not node.parked
            and node.owner is owner
            and node.parent is not None
        ):
            node.key += tokens
            node.pages = node.pages + pages
            node.last_use = now
            return node
        child = Node(node, tokens, pages, node.end, now)
        child.locks = 1
        child.owner = owner
        self._attach(node, child)
        return child

    def insert(self, node: Node, tokens: bytes, pages: list[int], now: float) -> list[int]:
        """Adds computed tokens below a locked node, a tail included, unlocked. Returns the pages that were not
        needed, for their tokens are here already."""
        block = self._block
        unused: list[int] = []
        at = 0
        while len(tokens) - at >= block:
            child = node.children.get(tokens[at : at + block])
            if child is None:
                break
            shared = _common_bytes(child.key, tokens, at)
            whole = shared // block
            if child.owner is not None and child.computed_end < child.start + whole * self.page_size:
                return unused + pages[at // block :]  # promised by another: not ours to hang computed tokens below
            unused += pages[at // block : at // block + whole]
            at += whole * block
            if whole * block < len(child.key):
                child = self._split(child, whole)
            node = child
        rest = tokens[at:]
        if not rest:
            return unused
        rest_pages = pages[at // block :]
        first = rest[:block]
        if len(first) < block and self._has_longer(node, first):
            return unused + rest_pages
        child = Node(node, rest, rest_pages, node.end, now)
        self.num_pages += len(rest_pages)
        self.num_evictable += len(rest_pages)
        self._attach(node, child)
        self._offer(child)
        return unused

    def _has_longer(self, node: Node, tail: bytes) -> bool:
        place = bisect_left(node.order, tail)
        return place < len(node.order) and node.order[place].startswith(tail)

    def _attach(self, parent: Node, child: Node) -> None:
        key = child.key[: self._block]
        self._supersede(parent, key)
        parent.children[key] = child
        insort(parent.order, key)
        woken = parent.parked.pop(key, None)
        if woken:
            self._wake(woken)

    def _supersede(self, parent: Node, key: bytes) -> None:
        """Forgets an unlocked tail that the new key repeats and goes beyond."""
        place = bisect_left(parent.order, key)
        if place == 0:
            return
        tail = parent.children[parent.order[place - 1]]
        if len(tail.key) < len(key) and key.startswith(tail.key) and tail.locks == 0:
            self._superseded += self._remove(tail)

    def take_superseded(self) -> list[int]:
        """Pages given up since the last call because longer ones repeat them; the caller frees them."""
        pages, self._superseded = self._superseded, []
        return pages

    # ------------------------------------------------------------------------------------ shrinking

    def evict(self, count: int) -> list[int]:
        """Gives up at least `count` pages, or all that can be: the ends of the least recently used unlocked
        leaves, page by page, so that what is left stays a prefix."""
        freed: list[int] = []
        while len(freed) < count and self._leaves:
            last_use, _, leaf = self._leaves[0]
            if not _is_current(last_use, leaf):
                heapq.heappop(self._leaves)
                continue
            wanted = count - len(freed)
            if wanted < len(leaf.pages):
                freed += self._shorten(leaf, len(leaf.pages) - wanted)
            else:
                heapq.heappop(self._leaves)
                freed += self._remove(leaf)
        return freed

    def cut(self, node: Node, position: int) -> tuple[Node, list[int]]:
        """Takes back tokens from `position` (a page border) on, up the path from `node`, as far as only one lock,
        the caller's, is on them. Returns the node that this lock is on now, and the pages."""
        freed: list[int] = []
        while node.end > position and node.parent is not None and node.locks == 1 and not node.children:
            parent = node.parent
            if node.start >= position:
                node.locks = 0
                self.num_evictable += len(node.pages)
                freed += self._remove(node)
                node = parent
            else:
                self.num_evictable += len(node.pages)
                freed += self._shorten(node, (position - node.start) // self.page_size)
                self.num_evictable -= len(node.pages)
        return node, freed

    def _shorten(self, leaf: Node, keep: int) -> list[int]:
        """Drops a leaf's pages after the first `keep` >= 1."""
        assert keep >= 1
        freed = leaf.pages[keep:]
        leaf.pages = leaf.pages[:keep]
        leaf.key = leaf.key[: keep * self._block]
        self.num_pages -= len(freed)
        self.num_evictable -= len(freed)
        self._wake_all(leaf)
        return freed

    def _remove(self, leaf: Node) -> list[int]:
        parent = leaf.parent
        assert parent is not None and not leaf.children and leaf.locks == 0
        key = leaf.key[: self._block]
        del parent.children[key]
        parent.order.pop(bisect_left(parent.order, key))
        leaf.parent = None
        self.num_pages -= len(leaf.pages)
        self.num_evictable -= len(leaf.pages)
        self._wake_all(leaf)
        self._offer(parent)
        return leaf.pages

    def _offer(self, node: Node) -> None:
        if node.locks == 0 and not node.children and node.parent is not None:
            self._pushes += 1
            heapq.heappush(self._leaves, (node.last_use, self._pushes, node))
            if len(self._leaves) > self._sweep_at:
                self._sweep()

    def _sweep(self) -> None:
        """Drops the heap's stale entries: as long as nothing has to be evicted, nobody else does."""
        current = {id(entry[2]): entry for entry in self._leaves if _is_current(entry[0], entry[2])}
        self._leaves = list(current.values())
        heapq.heapify(self._leaves)
        self._sweep_at = 2 * len(self._leaves) + 64

    def _split(self, node: Node, whole: int) -> Node:
        """Makes the first `whole` pages of the edge a node of their own above it, and returns that. `node` stays
        the end of its edge, so whoever holds it (locks, parked sequences) needs no change."""
        parent = node.parent
        assert parent is not None and 0 < whole * self._block < len(node.key)
        cut = whole * self._block
        upper = Node(parent, node.key[:cut], node.pages[:whole], node.start, node.last_use)
        upper.locks, upper.owner = node.locks, node.owner
        parent.children[node.key[: self._block]] = upper
        node.key, node.pages, node.start, node.parent = node.key[cut:], node.pages[whole:], upper.end, upper
        lower_key = node.key[: self._block]
        upper.children[lower_key] = node
        upper.order.append(lower_key)
        return upper

    # -------------------------------------------------------------------------------------- parking

    def park(self, sequence: Parked, match: Match, tokens: bytes) -> None:
        """Remembers where a waiting sequence's match ends."""
        at = match.node.end * TOKEN
        key = tokens[at : at + self._block]
        sequence.parked_at, sequence.parked_key = match.node, key
        match.node.parked.setdefault(key, set()).add(sequence)

    def unpark(self, sequence: Parked) -> None:
        node = sequence.parked_at
        if node is None:
            return
        group = node.parked[sequence.parked_key]
        group.discard(sequence)
        if not group:
            del node.parked[sequence.parked_key]
        sequence.parked_at = None

    def _wake_all(self, node: Node) -> None:
        groups = list(node.parked.values())
        node.parked.clear()
        for group in groups:
            self._wake(group)

    def _wake(self, group: set[Parked]) -> None:
        for sequence in group:
            sequence.parked_at = None
        self._on_rematch(group)

    # --------------------------------------------------------------------------------------- checks

    def nodes(self) -> Iterator[Node]:
        """Every node but the roots, parents first."""
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            if node.parent is not None:
                yield node
            stack += node.children.values()

    def roots(self) -> Iterator[Node]:
        yield from self._roots.values()

    def check_integrity(self) -> None:
        """Asserts what must hold between calls; slow, for tests."""
        num_pages = num_evictable = 0
        for node in self.nodes():
            assert node.key and len(node.pages) == -(-node.num_tokens // self.page_size)
            assert node.num_tokens % self.page_size == 0 or not node.children, "only a leaf may have a tail"
            assert node.parent is not None and node.start == node.parent.end
            assert node.parent.children[node.key[: self._block]] is node
            assert node.order == sorted(node.children)
            assert node.parent.locks >= node.locks, "a lock holds all above it"
            num_pages += len(node.pages)
            num_evictable += len(node.pages) if node.locks == 0 else 0
            for key, group in node.parked.items():
                assert group and all(s.parked_at is node and s.parked_key == key for s in group)
        assert (num_pages, num_evictable) == (self.num_pages, self.num_evictable)


def _is_current(last_use: float, leaf: Node) -> bool:
    """Whether a leaf that was offered for eviction when it was used last at `last_use` can still be evicted for it."""
    return not (leaf.locks or leaf.children or leaf.last_use != last_use or leaf.parent is None or not leaf.pages)


def _common_bytes(edge: bytes, target: bytes, at: int) -> int:
    """How many bytes of `edge` stand in `target` from `at` on, rounded down to whole tokens."""
    size = min(len(edge), len(target) - at)
    if target.startswith(edge[:size], at):
        return size
    low, high = 0, size  # edge[:low] agrees, edge[:high] does not
    while high - low > TOKEN:
        middle = (low + high) // 2 // TOKEN * TOKEN or TOKEN
        if middle == low:
            break
        if edge[low:middle] == target[at + low : at + middle]:
            low = middle
        else:
            high = middle
    return low
