"""What the registry shows of the rest of the system: which models are served, and what is missing."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from shared import registry
from shared.errors import ModelNotFound, Unavailable
from shared.messages import Instance

NEEDED = ("tokenizer", "scheduler", "gpu_worker")
RETRY_AFTER_S = 1.0
SHORT_ABSENCE_S = 5.0
"""A part that has been gone for less is being started again, or hands over to another: new requests wait for it with
those in flight, and clients see no error."""
_REFRESH_S = 0.25
"""A view is judged anew so often, since processes lapse by the clock."""


@dataclass(frozen=True, slots=True)
class Model:
    """A served model. max_model_len: the least of its workers'."""

    name: str
    max_model_len: int | None
    created: int


class Deployment:
    """The last view of the registry, judged.

    is_leaving: balancers are to choose another gateway, but who comes is served; is_stopping: no longer."""

    def __init__(self) -> None:
        self._instances: Sequence[Instance] = ()
        self._absent: list[str] = list(NEEDED)
        self._models: dict[str, Model] = {}
        self._judged_at = float("-inf")
        self._whole_at = time.monotonic()
        self._was_whole = False
        self.is_leaving = False
        self.is_stopping = False

    def update(self, instances: Sequence[Instance]) -> None:
        self._instances = instances
        self._judge()

    @property
    def models(self) -> dict[str, Model]:
        """By name; of workers that are heard of and ready, or were until shortly."""
        self._judge_if_old()
        return self._models

    @property
    def workers(self) -> list[str]:
        """Instance names of the workers that are heard of and ready."""
        now = time.time()
        alive = (one for one in self._instances if registry.is_fresh(one, now) and one.is_ready)
        return sorted(one.instance for one in alive if one.service == "gpu_worker")

    @property
    def absent(self) -> list[str]:
        """Services without any process that is heard of and ready."""
        self._judge_if_old()
        return self._absent

    @property
    def absent_for_s(self) -> float:
        """How long something has been absent, as far as is known here; 0 when all is there."""
        return time.monotonic() - self._whole_at if self.absent else 0.0

    @property
    def is_ready(self) -> bool:
        """Whether new requests are welcome."""
        return not self.is_leaving and self._can_answer

    @property
    def _can_answer(self) -> bool:
        return self.absent_for_s < SHORT_ABSENCE_S and self._was_whole

    def faults(self) -> list[str]:
        """What is not as it should be, in words. Requests may well be answered by what is there."""
        if self.is_leaving:
            return ["this gateway is stopping"]
        return registry.missing(self._instances, time.time())

    def check(self, model: str) -> Model:
        """Raises Unavailable when nobody could answer soon, ModelNotFound when nobody serves the model."""
        if self.is_stopping:
            raise Unavailable("This gateway is stopping; try again.", retry_after_s=RETRY_AFTER_S)
        if not self._can_answer:
            raise Unavailable(f"Not ready: no {', no '.join(self.absent)}.", retry_after_s=RETRY_AFTER_S)
        return self.model(model)

    def model(self, name: str) -> Model:
        served = self.models.get(name)
        if served is None:
            known = ", ".join(sorted(self.models)) or "none"
            raise ModelNotFound(f"The model '{name[:200]}' does not exist; served here: {known}.", param="model")
        return served

    def _judge_if_old(self) -> None:
        if time.monotonic() - self._judged_at > _REFRESH_S:
            self._judge()

    def _judge(self) -> None:
        now = time.time()
        alive = [one for one in self._instances if registry.is_fresh(one, now) and one.is_ready]
        there = {one.service for one in alive}
        self._absent = [service for service in NEEDED if service not in there]
        models: dict[str, Model] = {}
        for one in alive:
            if one.service != "gpu_worker" or one.model is None:
                continue
            other = models.get(one.model)
            lengths = [length for length in (one.max_model_len, other and other.max_model_len) if length]
            created = int(one.started_at) if other is None else min(other.created, int(one.started_at))
            models[one.model] = Model(one.model, min(lengths, default=None), created)
        self._judged_at = time.monotonic()
        if models or self._judged_at - self._whole_at >= SHORT_ABSENCE_S:
            self._models = models
        if not self._absent:
            self._whole_at = self._judged_at
            self._was_whole = True
