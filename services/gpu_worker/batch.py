"""A step's sequences as one flattened batch of tokens, on the device."""

from collections.abc import Sequence

import numpy as np
import torch

from services.gpu_worker.attention_plan import AttentionPlan, batch_order, plan_attention
from services.gpu_worker.step import SequenceStep


class Batch:
    """N tokens of all sequences of a step, one-token sequences first.

    token_ids, positions, slots: int64 [N]. logit_rows: rows whose logits are wanted, in the order of the steps."""

    def __init__(self, steps: Sequence[SequenceStep], page_size: int, dtype: torch.dtype, device: torch.device) -> None:
        order = batch_order(steps, page_size)
        self.steps = [steps[i] for i in order]
        self._page_size = page_size
        self._dtype = dtype
        self._device = device
        self._plans: dict[tuple[int | None, bool], AttentionPlan] = {}

        lengths = [len(step.token_ids) for step in self.steps]
        last_rows = np.cumsum(lengths) - 1
        row_of_step = np.empty(len(steps), dtype=np.int64)
        row_of_step[order] = last_rows
        wanted = np.array([step.wants_logits for step in steps], dtype=bool)

        token_ids = np.concatenate([np.frombuffer(step.token_ids, dtype=np.int32) for step in self.steps])
        positions = np.concatenate([np.arange(step.start, step.end) for step in self.steps])
        slots = np.concatenate([_slots(step, page_size) for step in self.steps])
        columns = torch.from_numpy(np.stack((token_ids.astype(np.int64), positions, slots))).to(device)
        self.token_ids, self.positions, self.slots = columns.unbind(0)
        self.logit_rows = torch.from_numpy(row_of_step[wanted]).to(device)

    def attention_plan(self, window: int | None, *, can_split: bool = False) -> AttentionPlan:
        """The plan for layers of that window, made when first asked for; can_split: see `plan_attention`."""
        plan = self._plans.get((window, can_split))
        if plan is None:
            plan = plan_attention(self.steps, self._page_size, window, self._dtype, self._device, can_split=can_split)
            self._plans[window, can_split] = plan
        return plan


def _slots(step: SequenceStep, page_size: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    positions = np.arange(step.start, step.end)
    table = np.frombuffer(step.page_table, dtype=np.int32).astype(np.int64)
    return table[positions // page_size] * page_size + positions % page_size
