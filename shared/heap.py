"""Garbage collection of a process that serves: what start-up built is not walked again and again.

A full collection walks every container object; with torch and transformers imported that takes 60 ms and more, in which
the process does nothing else. Objects that are there when the process is ready stay until it ends.
"""

import atexit
import gc

THRESHOLDS = (20_000, 20, 50)
"""Python's own are (700, 10, 10). A service makes thousands of short-lived objects a second and hardly any cycles."""


def settle_heap() -> None:
    """Takes what is there now out of later collections, and makes those rarer. To be called when a process is ready,
    and again after it has loaded something large."""
    gc.collect()
    gc.freeze()
    atexit.unregister(gc.unfreeze)
    atexit.register(gc.unfreeze)  # libraries in C++ complain of what is left when the interpreter ends
    gc.set_threshold(*THRESHOLDS)
