"""How much is in flight at this gateway, and how soon there is room again. Pure; time comes from outside."""

from dataclasses import dataclass, field

from shared.errors import Overloaded

HALF_LIFE_S = 10.0
LONGEST_WAIT_S = 60.0


@dataclass(slots=True)
class Pace:
    """Events per second, a mean that forgets half in `HALF_LIFE_S`."""

    _weight: float = 0.0
    _events: float = 0.0
    _at: float | None = None

    def count(self, now: float) -> None:
        self._fade(now)
        self._events += 1

    def per_second(self, now: float) -> float:
        """0: nothing is known yet."""
        self._fade(now)
        return self._events / self._weight if self._weight > 0.5 else 0.0

    def _fade(self, now: float) -> None:
        if self._at is None:
            self._at = now
            return
        passed = max(0.0, now - self._at)
        kept = 0.5 ** (passed / HALF_LIFE_S)
        scale = HALF_LIFE_S / 0.6931471805599453
        self._events *= kept
        self._weight = self._weight * kept + scale * (1 - kept)
        self._at = now


@dataclass(slots=True)
class Load:
    """max_requests, max_prompt_tokens: what may be in flight; 0: no limit.

    Those who are turned away form a queue in time: each is told to come back when at the present pace of completions a
    place is free that nobody before it was told of."""

    max_requests: int
    max_prompt_tokens: int
    requests: int = 0
    prompt_tokens: int = 0
    _ends: Pace = field(default_factory=Pace)
    _next_free: float = 0.0

    def enter(self, now: float) -> None:
        """A request takes a place. Raises Overloaded when all are taken."""
        if self.requests >= self.max_requests:
            raise Overloaded(
                f"{self.requests} requests are in flight, as many as this gateway takes; try again.",
                retry_after_s=self.retry_after_s(now),
            )
        self.requests += 1

    def leave(self, now: float) -> None:
        self.requests -= 1
        self._ends.count(now)

    def add_prompt(self, tokens: int, now: float) -> None:
        """Counts a prompt. One alone always has room. Raises Overloaded when there is none."""
        if self.max_prompt_tokens and self.prompt_tokens and self.prompt_tokens + tokens > self.max_prompt_tokens:
            raise Overloaded(
                f"Prompts of about {self.prompt_tokens} tokens are in flight, with this one more than this gateway "
                "takes; try again.",
                retry_after_s=self.retry_after_s(now),
            )
        self.prompt_tokens += tokens

    def remove_prompt(self, tokens: int) -> None:
        self.prompt_tokens -= tokens

    def retry_after_s(self, now: float) -> float:
        """When to come back; each asker gets a later moment than the one before."""
        pace = self._ends.per_second(now)
        self._next_free = max(now, self._next_free) + (1 / pace if pace else 0.01)
        self._next_free = min(self._next_free, now + LONGEST_WAIT_S)
        return min(LONGEST_WAIT_S, max(1.0, self._next_free - now))
