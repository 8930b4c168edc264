"""A checkpoint in its place: the file's name and its authenticated header must agree."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fedveil.vault.checkpoint import open_from
from fedveil.vault.errors import StoreError, VaultError
from fedveil.vault.files import file_source, open_private
from fedveil.vault.header import Header, Kind
from fedveil.vault.keyfile import Key
from fedveil.vault.tensors import Array

__all__ = ["Checkpoint", "read_placed"]


@dataclass(frozen=True)
class Checkpoint:
    """What was saved after one round, verified.

    Attributes
    ----------
    header : Header
        Run, round, time and the caller's `meta`.
    tensors : dict of str to ndarray
        Writable arrays that share one buffer.
    """

    header: Header
    tensors: dict[str, Array] = field(repr=False)


def read_placed(path: Path, key: Key, run: str, kind: Kind, round_: int) -> Checkpoint:
    """Read a file of a store and refuse it unless it is the one that belongs there.

    Parameters
    ----------
    path : Path
        The file.
    key : Key
        What it was sealed under.
    run, kind, round_
        What its place in the store says it holds.

    Raises
    ------
    StoreError
        If the file cannot be read, or holds another run, kind or round.
    VaultError
        If it does not open: the errors of `fedveil.vault.checkpoint.open_from`, which then name
        the file.
    """
    try:
        with open_private(path) as (descriptor, status):
            header, tensors = open_from(file_source(descriptor), key, status.st_size)
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from None
    except VaultError as error:
        raise type(error)(f"{path}: {error}") from None
    found, expected = (header.run, header.kind, header.round), (run, kind, round_)
    if found != expected:
        raise StoreError(
            f"{path} is in the wrong place: it holds {_describe(*found)}, "
            f"where {_describe(*expected)} belongs; it was renamed or moved"
        )
    return Checkpoint(header, tensors)


def _describe(run: str, kind: Kind, round_: int) -> str:
    return f"the {kind} of round {round_} of run {run!r}"
