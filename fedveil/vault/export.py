"""The one way out of encryption: an ordinary safetensors file in plaintext."""

from __future__ import annotations

import os
from pathlib import Path

from fedveil.vault.errors import StoreError
from fedveil.vault.files import create_file
from fedveil.vault.reader import StoreReader
from fedveil.vault.tensors import TensorFile

__all__ = ["export_plaintext"]


def export_plaintext(store: StoreReader, round_: int, path: Path) -> None:
    """Write the model after a round as a safetensors file that anybody can read who gets it.

    The file has mode 0600 and appears complete or not at all. Ask the user before calling this: it
    is the only function that lets weights reach a disk unencrypted.

    Parameters
    ----------
    store : StoreReader
        Where the round is kept.
    round_ : int
        A committed round.
    path : Path
        The file to make, in a folder that exists.

    Raises
    ------
    StoreError
        If anything is at the path already, or the file cannot be written.
    VaultError
        If the round does not open: the errors of `StoreReader.load`.
    """
    exists = StoreError(f"{path} exists already and is left as it is; choose another path")
    if os.path.lexists(path):
        raise exists
    file = TensorFile(store.load(round_).tensors)
    try:
        create_file(path, lambda sink: [sink.write(chunk) for chunk in file.chunks()])
    except FileExistsError:
        raise exists from None
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}; nothing was left there") from None
