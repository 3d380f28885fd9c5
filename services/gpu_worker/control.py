"""What operators ask of a worker, beside the scheduler's plans: traces of its next steps."""

import logging
import re
from pathlib import Path

from services.gpu_worker.profiler import Profiler
from shared.messages import TRACE_PATH, Profile
from shared.streams import Bus, control_stream

log = logging.getLogger(__name__)


def trace_file(path: str, default: Path, worker: str) -> Path:
    """Where a trace goes that was asked for over the wire: into the folder of `default`, the file of the settings, or
    below it. The worker's name is part of the file's, so that no two workers write to one and no file but a trace can
    be overwritten. Raises ValueError for a path that leads elsewhere."""
    if path and not re.fullmatch(TRACE_PATH, path):
        raise ValueError(f"{path!r} is no path of a .json file below the profile folder")
    folder = default.absolute().parent.resolve()
    file = folder / path if path else folder / default.name
    if not file.parent.resolve().is_relative_to(folder):  # a link on the way
        raise ValueError(f"{path!r} leads out of {folder}")
    return file.with_name(f"{file.stem}-{re.sub(r'[^0-9A-Za-z_.@-]', '_', worker)}{file.suffix}")


async def follow_control(bus: Bus, worker: str, since: str, profiler: Profiler, default: Path) -> None:
    """Obeys what is asked after the entry `since`, for ever. What cannot be done is said in the log."""
    stream = control_stream(worker)
    cursors = {stream: since}
    async for deliveries in bus.follow(lambda: cursors, block_s=5.0):
        for delivery in deliveries:
            cursors[stream] = delivery.entry_id
            _profile(delivery.message, worker, profiler, default)
        if deliveries:
            bus.outbox.trim(stream, cursors[stream])


def _profile(asked: Profile, worker: str, profiler: Profiler, default: Path) -> None:
    try:
        file = trace_file(asked.path, default, worker)
        profiler.request(asked.steps, file)
    except (ValueError, OSError) as error:
        log.warning("not traced: %s", error)
    else:
        log.warning("tracing the next %d steps to %s", asked.steps, file)
