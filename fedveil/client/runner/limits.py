"""How much memory and time a data owner lets one message take."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass

from fedveil.errors import FedveilError

__all__ = ["LimitError", "TaskLimits", "is_out_of_memory", "machine_memory"]

_MIB = 2**20
_LEAST_MEMORY = 512 * _MIB
"""torch and opacus alone are about half of it."""
_ALLOCATOR = ("can't allocate memory", "CUDA out of memory", "not enough memory")


class LimitError(FedveilError):
    """A limit makes no sense."""


def machine_memory() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@dataclass(frozen=True)
class TaskLimits:
    """What one message may take before it is ended and answered with an error.

    Parameters
    ----------
    memory : int
        Bytes of private memory of the worker, its libraries included; at least 512 MiB.
    seconds : float
        From the moment that the worker takes the message up.

    Raises
    ------
    LimitError
        If a limit is out of range.
    """

    memory: int
    seconds: float

    def __post_init__(self) -> None:
        if self.memory < _LEAST_MEMORY:
            raise LimitError(
                f"a memory limit of {self.memory / _MIB:.0f} MiB is too low: PyTorch alone takes "
                f"about half of {_LEAST_MEMORY // _MIB} MiB, the least that may be set"
            )
        if not self.seconds > 0:
            raise LimitError(f"a time limit of {self.seconds:g} s must be above 0")

    def hold(self) -> None:
        """Hold this process to the memory limit, for good.

        ``RLIMIT_DATA`` counts what a process may write and shares with nobody (`getrlimit(2)`):
        not the code of libraries, and not the addresses that CUDA reserves and does not use.
        """
        resource.setrlimit(resource.RLIMIT_DATA, (self.memory, self.memory))

    @property
    def memory_words(self) -> str:
        """What is said of a message that needs more memory."""
        return (
            f"this client's task needs more memory than its owner's limit of "
            f"{self.memory / _MIB:.0f} MiB"
        )

    @property
    def time_words(self) -> str:
        """What is said of a message that takes longer."""
        return f"this client's task was ended after its owner's limit of {self.seconds:g} s"


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error, or one that led to it, is for want of memory."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError) or any(words in str(seen) for words in _ALLOCATOR):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
