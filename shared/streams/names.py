"""Every stream there is, and what it carries."""

from shared.messages import (
    Abort,
    Deltas,
    Died,
    Fence,
    Generate,
    Goodbye,
    Hello,
    Holdings,
    Open,
    Output,
    Plan,
    Profile,
    Progress,
    Rejected,
    Tokenize,
)
from shared.streams.entries import Stream

ToScheduler = Generate | Abort
FromWorker = Hello | Progress | Holdings | Goodbye | Died
ToShard = Open | Output | Fence
ToGateway = Deltas | Rejected

TOKENIZE: Stream[Tokenize] = Stream("tokenize", Tokenize, group="tokenizers", repeats=False)
SCHEDULE: Stream[ToScheduler] = Stream("schedule", ToScheduler, group="schedulers", repeats=False)
EVENTS: Stream[FromWorker] = Stream("events", FromWorker, repeats=False)  # a report that is lost is missed


def plan_stream(worker: str) -> Stream[Plan]:
    return Stream(f"plan:{worker}", Plan)


def control_stream(worker: str) -> Stream[Profile]:
    """What an operator asks of a worker beside the scheduler's plans; read from its end, for it is kept briefly."""
    return Stream(f"control:{worker}", Profile, repeats=False)


def shard_stream(shard: int) -> Stream[ToShard]:
    return Stream(f"tokens:{shard}", ToShard)


def reply_stream(gateway: str) -> Stream[ToGateway]:
    return Stream(f"reply:{gateway}", ToGateway)
