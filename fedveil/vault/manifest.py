"""The description of a store: which run it belongs to and which key it needs; no secret."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from fedveil.vault.errors import HeaderError, StoreError, VaultError
from fedveil.vault.files import create_file, open_private, read_small
from fedveil.vault.header import check_key_id, check_run

__all__ = ["MANIFEST_NAME", "STORE_FORMAT", "Manifest", "read_manifest", "write_manifest"]

MANIFEST_NAME = "store.json"
STORE_FORMAT = "fedveil-store-1"

_MOST_BYTES = 4096


@dataclass(frozen=True)
class Manifest:
    """What ``store.json`` says.

    Nothing vouches for this file itself. The run and the key are also in the authenticated header
    of every round, and it is that which counts.

    Parameters
    ----------
    run : str
        Name of the run, 1 to 128 printable characters.
    key_id : str
        Public name of the key, 16 hexadecimal characters.

    Raises
    ------
    HeaderError
        If a value is not allowed.
    """

    run: str
    key_id: str

    def __post_init__(self) -> None:
        check_run(self.run)
        check_key_id(self.key_id)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write a new description into a folder.

    Raises
    ------
    StoreError
        If there is one already; it is left as it is.
    OSError
        If it cannot be written.
    """
    fields = {"format": STORE_FORMAT, **asdict(manifest)}
    content = (json.dumps(fields, indent=2) + "\n").encode()
    try:
        create_file(directory / MANIFEST_NAME, lambda sink: sink.write(memoryview(content)))
    except FileExistsError:
        raise StoreError(
            f"{directory} is a model store already; open it, or choose another folder"
        ) from None


def read_manifest(directory: Path) -> Manifest:
    """Read the description of a store.

    Raises
    ------
    StoreError
        If there is none, or it cannot be read or is malformed.
    """
    path = directory / MANIFEST_NAME
    try:
        with open_private(path) as (descriptor, _):
            content = read_small(descriptor, _MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"{directory} is not a model store: it has no {MANIFEST_NAME}") from None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from None
    except VaultError as error:
        raise StoreError(f"model store refused: {error}") from None
    try:
        fields = json.loads(content)
        if fields.pop("format") != STORE_FORMAT:
            raise StoreError(f"{path} is not of the format {STORE_FORMAT}")
        return Manifest(**fields)
    except (ValueError, RecursionError, TypeError, AttributeError, KeyError, HeaderError):
        raise StoreError(f"{path} is not a description of the format {STORE_FORMAT}") from None
