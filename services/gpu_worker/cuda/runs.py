"""The device's copy of a table of forced runs."""

import torch

from services.gpu_worker.cuda.staging import Staging
from services.gpu_worker.grammar.prediction import ENTRY, MAX_NUMBERS, RunTable
from services.gpu_worker.grammar.vocabulary import MAX_TOKEN_BYTES


class DeviceRuns:
    """follow, entries, texts, text_lengths: see `RunTable`, as of the last `load`."""

    def __init__(self, table: RunTable, vocab_size: int, device: torch.device) -> None:
        self._table = table
        self._device = device
        self._has_texts = False
        self.follow = torch.zeros((MAX_NUMBERS, 256), dtype=torch.int32, device=device)
        self.entries = torch.zeros((MAX_NUMBERS, ENTRY), dtype=torch.int32, device=device)
        self.texts = torch.zeros((vocab_size, MAX_TOKEN_BYTES), dtype=torch.uint8, device=device)
        self.text_lengths = torch.zeros(vocab_size, dtype=torch.int32, device=device)

    def load(self, staging: Staging) -> None:
        """What is new in the table."""
        table = self._table
        if not self._has_texts and table.texts is not None and table.text_lengths is not None:
            self.texts.copy_(torch.from_numpy(table.texts))
            self.text_lengths.copy_(torch.from_numpy(table.text_lengths))
            self._has_texts = True
        changes = table.changes()
        if changes is not None:
            numbers, follow, entries = changes
            at = staging.to_device(numbers, self._device)
            self.follow.index_copy_(0, at, staging.to_device(follow, self._device).view(-1, 256))
            self.entries.index_copy_(0, at, staging.to_device(entries, self._device).view(-1, ENTRY))
            table.note_copied()
