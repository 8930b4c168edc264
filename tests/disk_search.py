"""Search of all that a deployment leaves on disks for the bytes of known weights."""

from __future__ import annotations

import base64
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

WATCH = Path(__file__).parent / "disk_watch"
"""Put on PYTHONPATH, this watches every Python process that starts; see its one module."""

_WINDOW = 16
_WINDOWS_PER_TENSOR = 16


def needles(tensors: Mapping[str, NDArray[np.generic]]) -> list[bytes]:
    """Return short pieces of the tensors as any file that holds them must hold one.

    Sixteen windows of 16 bytes of each tensor's float32 little-endian bytes, from its first to
    its last, and each of them in base64 at the three places that it can have in the encoding.
    """
    found = []
    for tensor in tensors.values():
        flat = np.ravel(tensor).astype("<f4")
        for start in np.linspace(0, max(0, flat.size - 4), _WINDOWS_PER_TENSOR, dtype=int):
            window = flat[start : start + 4]
            # Zeros and constants lie in any file.
            if np.unique(window).size == 4:
                found += _forms(window.tobytes())
    assert found, "nothing to search for"
    return list(dict.fromkeys(found))


def _forms(window: bytes) -> Iterator[bytes]:
    yield window
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + window)
        yield encoded[-(-shift * 8 // 6) : (shift + _WINDOW) * 8 // 6]


def files_under(folder: Path) -> list[Path]:
    """Return every regular file in a folder, however deep."""
    return [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]


def holding(paths: Iterable[Path], sought: Iterable[bytes]) -> list[Path]:
    """Return the files that hold any of the pieces; a file that is gone by now holds none."""
    found = []
    for path in paths:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            continue
        if any(piece in content for piece in sought):
            found.append(path)
    return found


def watched_environment(folder: Path) -> dict[str, str]:
    """Return the variables under which a process and its children are watched into `folder`."""
    folder.mkdir()
    paths = [str(WATCH), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "FEDVEIL_DISK_WATCH": str(folder)}


def opened_for_writing(watched: Path) -> set[str]:
    """Return every path that a watched process opened for writing, or as a database."""
    lines = [path.read_text().splitlines() for path in watched.glob("opened-*")]
    return {line for part in lines for line in part}


def open_files_of_watched(watched: Path) -> list[Path]:
    """Return what watched processes that still run hold open: files without a name too."""
    marked = f"FEDVEIL_DISK_WATCH={watched}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if marked not in (process / "environ").read_bytes().split(b"\0"):
                continue
            found += [fd for fd in (process / "fd").iterdir() if stat.S_ISREG(fd.stat().st_mode)]
        except OSError:
            continue
    return found


def temporary_files() -> set[Path]:
    """Return what we can read directly in the system's own places for temporary files."""
    places = [Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")]  # noqa: S108  # looked at only
    entries = [path for place in places if place.is_dir() for path in place.iterdir()]
    return {path for path in entries if path.is_file() and os.access(path, os.R_OK)}


assert sys.byteorder == "little", "the search is for the bytes that this machine would write"
