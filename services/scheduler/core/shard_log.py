"""What a token shard says of some sequences, found out as a tokenizer would read it."""

from array import array
from collections.abc import Iterable

from shared.messages import Ended, Fence, Open, Output
from shared.packing import pack_i32, unpack_i32, unpack_i64


class ShardLog:
    """Takes a shard's entries in order. opened: the sequences that somebody waits for; ended: those that are over."""

    def __init__(self, sequence_ids: Iterable[int]) -> None:
        self.opened: set[int] = set()
        self.ended: dict[int, Ended] = {}
        self._tokens = {sequence_id: array("i") for sequence_id in sequence_ids}
        self._early: dict[tuple[int, int], int] = {}  # (sequence, index) -> token
        self._fenced: set[tuple[str, int]] = set()

    def take(self, message: Open | Output | Fence) -> None:
        """Raises ValueError for arrays that do not fit each other."""
        match message:
            case Open():
                self.opened.update(self._tokens.keys() & set(message.sequence_ids))
            case Fence():
                self._fenced.add((message.worker, message.epoch))
            case Output() if (message.worker, message.epoch) not in self._fenced:
                self._take_output(message)

    def _take_output(self, message: Output) -> None:
        indices, token_ids = unpack_i32(message.indices), unpack_i32(message.token_ids)
        for sequence_id, index, token_id in zip(unpack_i64(message.sequence_ids), indices, token_ids, strict=True):
            tokens = self._tokens.get(sequence_id)
            if tokens is None or index < len(tokens):
                continue
            if index > len(tokens):
                self._early.setdefault((sequence_id, index), token_id)
                continue
            tokens.append(token_id)
            while self._early and (following := self._early.pop((sequence_id, len(tokens)), None)) is not None:
                tokens.append(following)
        for ended in message.ended:
            if ended.sequence_id in self._tokens:
                self.ended.setdefault(ended.sequence_id, ended)

    def outputs(self) -> dict[int, bytes]:
        """Output tokens of each sequence from the first on, without a gap, int32 bytes."""
        return {sequence_id: pack_i32(tokens) for sequence_id, tokens in self._tokens.items()}
