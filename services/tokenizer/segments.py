"""Encodes rendered conversations piece by piece, remembering the pieces: a turn encodes only what is new in it.

A special token (an added token that is looked for before the text is normalised) splits the text: what stands before
and what stands after it is normalised, split and encoded apart. So a text cut in front of special tokens encodes to
what its *segments* encode to, one after another, and a segment (a message, mostly) always to the same.
"""

import re
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from threading import Lock

from tokenizers import AddedToken, Tokenizer

ENTRY_BYTES = 200
"""What an entry takes beside text and ids, about."""

_PIECES = (
    "Hello",
    " world",
    " a",
    "  ",
    "\n",
    "\n\n",
    "x",
    "'s",
    "é",
    "日本",
    "1234",
    " ",
    "\t",
    "!",
    "<",
    "|",
    "😀 ok",
)


class SegmentEncoder:
    """A tokenizer's `encode` without the special tokens that it would add. Safe to call from threads.

    is_split: whether this tokenizer's texts can be cut at all; else each is one segment."""

    def __init__(self, backend: Tokenizer, capacity_bytes: int) -> None:
        """capacity_bytes: of remembered texts and ids, least recently used out first; 0: nothing is remembered."""
        self._backend = backend
        self._capacity = capacity_bytes
        self._used = 0
        self._known: OrderedDict[tuple[str, str], array[int]] = OrderedDict()
        self._lock = Lock()
        self._cuts: re.Pattern[str] | None = None
        self._uncut: frozenset[str] = frozenset()
        tokens = [token for token in backend.get_added_tokens_decoder().values() if not token.normalized]
        if tokens and not any(token.single_word for token in tokens):  # those depend on what stands before them
            longest_first = sorted((token.content for token in tokens), key=len, reverse=True)
            self._cuts = re.compile("|".join(map(re.escape, longest_first)))
            self._uncut = frozenset(token.content for token in tokens if token.lstrip)  # these eat what stands before
            if not self._is_exact(tokens):
                self._cuts = None

    @property
    def is_split(self) -> bool:
        return self._cuts is not None

    def encode(self, texts: Sequence[str], salts: Sequence[str]) -> "list[array[int]]":
        """The texts' token ids. Segments are shared only below the same salt: how long a text takes tells nothing to
        those with another."""
        parts = [[(salt, segment) for segment in self._split(text)] for text, salt in zip(texts, salts, strict=True)]
        found = self._look_up(dict.fromkeys(key for keys in parts for key in keys))
        missing = list(dict.fromkeys(key for keys in parts for key in keys if key not in found))
        if missing:
            # always as a batch: `encode` of one text keeps the interpreter lock, and with it every other thread
            encodings = self._backend.encode_batch_fast([text for _, text in missing], add_special_tokens=False)
            new = {key: array("i", encoding.ids) for key, encoding in zip(missing, encodings, strict=True)}
            found |= new
            self._remember(new)
        results = []
        for keys in parts:
            ids = array("i")
            for key in keys:
                ids.extend(found[key])
            results.append(ids)
        return results

    def _split(self, text: str) -> list[str]:
        """The text's segments. Each but the first begins with a special token."""
        if self._cuts is None or not self._capacity:
            return [text]
        places = [0]
        places += [m.start() for m in self._cuts.finditer(text) if m.start() and m.group() not in self._uncut]
        return [text[start:end] for start, end in zip(places, [*places[1:], len(text)], strict=True)]

    def _look_up(self, keys: Iterable[tuple[str, str]]) -> "dict[tuple[str, str], array[int]]":
        found = {}
        with self._lock:
            for key in keys:
                ids = self._known.get(key)
                if ids is not None:
                    self._known.move_to_end(key)
                    found[key] = ids
        return found

    def _remember(self, new: "dict[tuple[str, str], array[int]]") -> None:
        with self._lock:
            for key, ids in new.items():
                size = _size(key, ids)
                if key in self._known or size > self._capacity // 4:
                    continue
                self._known[key] = ids
                self._used += size
            while self._used > self._capacity:
                self._used -= _size(*self._known.popitem(last=False))

    def _is_exact(self, tokens: Sequence[AddedToken]) -> bool:
        """Whether texts of all sorts, with these tokens between, come out the same in segments and whole."""
        texts = []
        for start in range(len(_PIECES)):
            pieces = [_PIECES[(start + 7 * i) % len(_PIECES)] for i in range(12)]
            marks = [tokens[(start + i) % len(tokens)].content for i in range(12)]
            texts.append("".join(piece + mark for piece, mark in zip(pieces, marks, strict=True)))
            texts.append(
                "".join(mark + piece * (i % 3) for i, (piece, mark) in enumerate(zip(pieces, marks, strict=True)))
            )
        whole = [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        capacity, self._capacity = self._capacity, 1
        in_segments = [list(ids) for ids in self.encode(texts, [""] * len(texts))]
        self._capacity = capacity
        return in_segments == whole


def _size(key: tuple[str, str], ids: "array[int]") -> int:
    return ENTRY_BYTES + 2 * len(key[1]) + 4 * len(ids)
