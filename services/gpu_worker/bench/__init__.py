"""Times the worker's kernels on this machine's GPU: `python -m services.gpu_worker.bench`, or `sapwood bench kernels`.

A module here of a kernel's name defines `cases() -> Iterable[Case]`; `case` and `runner` are what they share."""
