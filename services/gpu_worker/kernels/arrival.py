"""Which of a row's programs is the last to finish, so that it can use what all of them stored.

A second launch would tell the same; this one saves it, and the idle time between two launches.
"""

import triton
import triton.language as tl


@triton.jit
def is_last(counter_ptr, num_programs):  # type: ignore[no-untyped-def]
    """True in exactly one of `num_programs` programs: the one that calls it last. It sees what the others stored
    before their calls if it loads with cache_modifier ".cg". The counter is 0 before the launch and after it."""
    tl.debug_barrier()  # the atomic is one thread's: what the others stored comes before it
    arrived = tl.atomic_add(counter_ptr, 1, sem="acq_rel")
    last = arrived == num_programs - 1
    if last:
        tl.store(counter_ptr, 0)
    return last
