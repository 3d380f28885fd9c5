"""Moved: cases are in services/gpu_worker/bench/<kernel>.py, importable from the installed package.

Write `from services.gpu_worker.bench.case import Case, rotating, sets_past_l2, assert_error_below, nbytes` and put the
file with `cases()` there. Run: python -m services.gpu_worker.bench --only NAME"""

from services.gpu_worker.bench.case import Case, assert_error_below, nbytes, relative_error, rotating, sets_past_l2

__all__ = ["Case", "assert_error_below", "nbytes", "relative_error", "rotating", "sets_past_l2"]
