"""Runs a command that dies with its parent: `python leash.py PARENT_PID COMMAND...`.

The kernel sends SIGKILL to the process when the launcher ends, however it ends, and the setting survives exec, so
no child outlives a launcher that was killed. Linux only; elsewhere the command just runs. A script of its own and
free of imports from the project, for it runs once a child and is to be quick.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def leashed(command: Sequence[str]) -> list[str]:
    """The command line that runs `command` on a leash held by this process. To be started from the main thread:
    the kernel looks at the thread that forked."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the call above
            sys.exit(1)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"cannot run {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
