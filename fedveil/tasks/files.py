"""Data files that a user names: read only when their sha256 is the published one."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedveil.tasks.errors import TaskError

__all__ = ["DataFiles", "arrays_sha256"]

Arrays = dict[str, NDArray[np.generic]]


def arrays_sha256(arrays: Mapping[str, NDArray[np.generic]]) -> str:
    """Hash named arrays, whatever container they lie in.

    The same arrays make different `.npz` bytes with every version of zip and numpy, so the
    contents are pinned and not the container.

    Parameters
    ----------
    arrays : Mapping[str, ndarray]
        Arrays by name; the order does not matter, dtype, shape and values do.

    Returns
    -------
    str
        sha256 (hex) over, for every array by ascending name, a line "name dtype shape" and the
        values in C order, little-endian.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
        digest.update(f"{name} {little.dtype.str} {little.shape}\n".encode())
        digest.update(little.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class DataFiles:
    """The data files of one task in the directory that the user named.

    Nothing is touched before a `read`: a coordinator that only needs the model of a task has
    none of the data, and a hospital has its own file alone.

    Parameters
    ----------
    task : str
        Name of the task, for messages.
    directory : Path or None
        Where the files lie.
    sha256 : Mapping[str, str]
        File name to sha256 (hex): of the bytes of the file, or of its arrays
        (`arrays_sha256`) where the name ends in ``.npz``.
    source : str
        The public place that the files come from.
    """

    task: str
    directory: Path | None
    sha256: Mapping[str, str]
    source: str

    def read(self, name: str) -> bytes:
        """Return the bytes of a file.

        Raises
        ------
        TaskError
            If no directory was named, or the file is missing, unreadable or not the published
            one.
        """
        path, data = self._bytes(name)
        self._check(name, path, hashlib.sha256(data).hexdigest())
        return data

    def read_arrays(self, name: str) -> Arrays:
        """Return the arrays of an ``.npz`` file; pickled objects are refused.

        Raises
        ------
        TaskError
            As `read`, and if the file is not an ``.npz`` file of plain arrays.
        """
        path, data = self._bytes(name)
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                arrays: Arrays = {key: archive[key] for key in archive.files}
        except Exception as error:  # a damaged archive fails in more ways than zipfile documents
            raise TaskError(
                f"{path} cannot be read as .npz: {error}; {self._fetch(name)}"
            ) from error
        self._check(name, path, arrays_sha256(arrays))
        return arrays

    def _bytes(self, name: str) -> tuple[Path, bytes]:
        if self.directory is None:
            raise TaskError(
                f"task {self.task} needs the file {name} and no data directory is set;"
                f" {self._fetch(name)} and name its directory (data_dir)"
            )
        path = self.directory / name
        try:
            return path, path.read_bytes()
        except FileNotFoundError as error:
            raise TaskError(
                f"task {self.task} needs {path}, which does not exist;"
                f" {self._fetch(name)} and put it at that place"
            ) from error
        except OSError as error:
            raise TaskError(f"{path} cannot be read: {error.strerror}") from error

    def _check(self, name: str, path: Path, found: str) -> None:
        if found != self.sha256[name]:
            raise TaskError(
                f"{path} is not the published file: {self._measure(name)} {found},"
                f" expected {self.sha256[name]}; {self._fetch(name)} anew"
            )

    def _fetch(self, name: str) -> str:
        return f"fetch {name} ({self._measure(name)} {self.sha256[name]}) from {self.source}"

    @staticmethod
    def _measure(name: str) -> str:
        return "sha256 of its arrays" if name.endswith(".npz") else "sha256"
