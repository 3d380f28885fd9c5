"""The work list of a decode step, once a step for all layers."""

from collections.abc import Iterable

import torch

from services.gpu_worker.bench.case import Case
from services.gpu_worker.bench.decode_attention import unlike_lengths
from services.gpu_worker.kernels.work_list import DecodePlan, work_list_reference


def cases() -> Iterable[Case]:
    device = torch.device("cuda")
    for count in (1, 64, 512, 2048):
        lengths = unlike_lengths(count, 64, 1984)
        plan = DecodePlan(count, None, 8, 4, 64, device)
        on_device = torch.tensor(lengths, dtype=torch.int32, device=device)
        seats = torch.arange(count, dtype=torch.int32, device=device)

        def run(plan: DecodePlan = plan, on_device: torch.Tensor = on_device, seats: torch.Tensor = seats) -> None:
            plan.update(on_device, seats)

        def check(plan: DecodePlan = plan, lengths: tuple[int, ...] = lengths, run: object = run) -> None:
            assert callable(run)
            run()
            block = plan.tile.block_tokens
            rows = work_list_reference(list(lengths), 8, plan.num_sms, plan.costs, block, plan.max_items)
            wanted = [[start, end] for chunks in rows for start, end in chunks]
            assert plan.items[: int(plan.num_items), 2:].tolist() == wanted, "another list than the reference's"

        yield Case(f"{count} rows", run, check, 8 * count + 16 * plan.max_items)
