"""Settings of the scheduler."""

from typing import Annotated

import msgspec

from services.scheduler.core.worker_state import Tuning
from shared.settings import BaseSettings, help_


class Settings(BaseSettings, frozen=True, kw_only=True):
    """scheduler: decides who runs where and in which pages."""

    policy: Annotated[str, help_("order of the waiting: lpm (longest cached prefix first) or fcfs")] = "lpm"
    aging: Annotated[
        float,
        msgspec.Meta(ge=0),
        help_("with lpm: cached tokens that a second of waiting counts for"),
    ] = 200.0
    headroom_tokens: Annotated[int, msgspec.Meta(ge=1), help_("decode tokens a lease has room for")] = 64
    low_water_tokens: Annotated[int, msgspec.Meta(ge=1), help_("room left when a lease is renewed")] = 32
    lookahead: Annotated[
        float, msgspec.Meta(gt=0), help_("admitted prompt tokens a worker may have before it, in prefill budgets")
    ] = 2.0
    worker_lapse_s: Annotated[float, msgspec.Meta(gt=1), help_("a worker silent for so long is given up")] = 6.0
    no_worker_patience_s: Annotated[
        float, msgspec.Meta(ge=0), help_("how long requests wait for a first worker before they end with 503")
    ] = 60.0
    check_ledger: Annotated[bool, help_("check every page's place after every decision; slow, for tests")] = False

    @property
    def tuning(self) -> Tuning:
        return Tuning(headroom=self.headroom_tokens, low_water=self.low_water_tokens, lookahead=self.lookahead)
