"""Reading a file of a store, so that every refusal names it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from fedveil.vault.buffers import ReadAt
from fedveil.vault.errors import StoreError, VaultError
from fedveil.vault.files import file_reader, open_private
from fedveil.vault.header import Header
from fedveil.vault.tensors import Array

__all__ = ["Checkpoint", "read_placed"]

Result = TypeVar("Result")


@dataclass(frozen=True)
class Checkpoint:
    """What was saved after one round, verified.

    Attributes
    ----------
    header : Header
        Run, round, time and the caller's `meta`.
    tensors : dict of str to ndarray
        Writable arrays.
    """

    header: Header
    tensors: dict[str, Array] = field(repr=False)


def read_placed(path: Path, read: Callable[[ReadAt, int], Result]) -> Result:
    """Read a file of a store.

    Parameters
    ----------
    path : Path
        The file.
    read : callable
        Makes the result from the file and its length.

    Raises
    ------
    StoreError
        If the file cannot be read.
    VaultError
        What `read` raises, which then names the file.
    """
    try:
        with open_private(path) as (descriptor, status):
            return read(file_reader(descriptor), status.st_size)
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from None
    except VaultError as error:
        raise type(error)(f"{path}: {error}") from None
