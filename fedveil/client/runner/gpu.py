"""One task at a time per GPU, over all clients of a user on a machine."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Mapping
from pathlib import Path

from fedveil.errors import FedveilError
from fedveil.home import home, make_private

__all__ = ["GpuError", "GpuTurn", "gpu_of"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_NO_GPU = {"", "none", "-1"}


class GpuError(FedveilError):
    """A GPU is named that cannot be one."""


def gpu_of(named: str | None, environ: Mapping[str, str], devices: Path = Path("/dev")) -> str:
    """Return the GPUs that a client's tasks run on, as "0" or "0,1"; empty if they run on none.

    Parameters
    ----------
    named : str, optional
        An index or an id as ``CUDA_VISIBLE_DEVICES`` takes it, several with commas between, or
        ``none``; by default the first one that this process may see.
    environ : mapping of str to str
        Where ``CUDA_VISIBLE_DEVICES`` may stand.
    devices : Path
        Where the driver shows the GPUs of the machine.

    Raises
    ------
    GpuError
        If the name is none that CUDA knows.
    """
    if named is None:
        named = environ.get("CUDA_VISIBLE_DEVICES")
        if named is None:
            return "0" if any(devices.glob("nvidia[0-9]*")) else ""
        named = named.split(",")[0].strip()
    if named in _NO_GPU:
        return ""
    names = [name.strip() for name in named.split(",")]
    if not all(_NAME.fullmatch(name) for name in names) or len(set(names)) < len(names):
        raise GpuError(
            f"GPU {named!r}: give an index such as 0, an id such as GPU-..., several such as 0,1, "
            "or none"
        )
    return ",".join(names)


class GpuTurn:
    """A client's turn on its GPUs; the kernel ends it with the process, however that ends.

    Parameters
    ----------
    gpu : str
        As `gpu_of` returns it; every turn comes at once where it is empty.
    folder : Path, optional
        Where the clients of this machine meet; by default in the user's folder for Fedveil.
    """

    def __init__(self, gpu: str, folder: Path | None = None) -> None:
        self._files: list[int] = []
        if gpu:
            folder = home() / "gpus" if folder is None else folder
            make_private(folder)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            for name in gpu.split(","):
                self._files.append(os.open(folder / f"{name}.lock", flags, 0o600))

    def take(self) -> bool:
        """Take the turn on all of them if nobody has any; return whether it is ours."""
        for file in self._files:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # Whoever kept one and waited for another could wait for somebody who does the same.
                self.leave()
                return False
        return True

    def leave(self) -> None:
        """Leave it to the next."""
        for file in self._files:
            fcntl.flock(file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Leave it and meet no more."""
        while self._files:
            os.close(self._files.pop())
