"""What a process that holds weights or keys does to keep its memory off the disk."""

from __future__ import annotations

import ctypes
import os
import resource
import sys

from fedveil.errors import FedveilError

__all__ = ["HygieneError", "forbid_core_dumps"]

_PR_SET_DUMPABLE = 4
_NO_HELPER = 1


class HygieneError(FedveilError):
    """The system does not let a process keep its memory to itself."""


def forbid_core_dumps() -> None:
    """Let a crash of this process leave no copy of its memory; may be called many times.

    The limit of core files goes down for good, in this process and in all that it starts. On
    Linux it becomes one byte and not none: the kernel ignores the limit where it hands a core to
    a helper (systemd-coredump, apport), except for a limit of one, and a file of one byte it
    never writes (``fs/coredump.c``; ``core(5)`` describes the rest).

    On Linux this process is also marked as not dumpable (``PR_SET_DUMPABLE``, ``prctl(2)``).
    Then another process of the same user cannot attach to it or read its memory through
    ``/proc`` either, unless it has CAP_SYS_PTRACE or, on newer kernels, CAP_PERFMON, as root
    does; debuggers and profilers are kept out with it. Programs that this process executes begin
    dumpable again and have the limit alone.

    Nothing here keeps memory out of swap, of a hibernation image or of a snapshot of the machine.

    Raises
    ------
    HygieneError
        If the system refuses.
    """
    linux = sys.platform == "linux"
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    limit = _NO_HELPER if linux and hard != 0 else 0
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
    except (OSError, ValueError) as error:
        raise HygieneError(f"core dumps cannot be forbidden: setrlimit failed ({error})") from None
    if linux:
        library = ctypes.CDLL(None, use_errno=True)
        if library.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise HygieneError(
                f"core dumps cannot be forbidden: prctl failed ({reason}); a filter of system "
                "calls (seccomp) must let PR_SET_DUMPABLE pass"
            )
