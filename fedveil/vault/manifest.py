"""The description of a store: whose rounds it holds, and who must have signed them; no secret."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fedveil.vault.errors import HeaderError, SignatureError, StoreError, VaultError
from fedveil.vault.files import create_file, open_private, read_small
from fedveil.vault.header import check_public_id, check_run
from fedveil.vault.signing import VerifyKey

__all__ = ["MANIFEST_NAME", "STORE_FORMAT", "Manifest", "read_manifest", "write_manifest"]

MANIFEST_NAME = "store.json"
STORE_FORMAT = "fedveil-store-2"

_OLD_FORMAT = "fedveil-store-1"
_MOST_BYTES = 4096


@dataclass(frozen=True)
class Manifest:
    """What ``store.json`` says.

    Nothing vouches for this file itself. Run and store are also in the authenticated header of
    every round, and it is that which counts; the verify key is for who gives none of their own.

    Parameters
    ----------
    run : str
        Name of the run, 1 to 128 printable characters.
    store : str
        Public name of the store, 16 hexadecimal characters, drawn when it was made.
    verify_key : VerifyKey or None
        Whose signature every round has; None where rounds are not signed.

    Raises
    ------
    HeaderError
        If a value is not allowed.
    """

    run: str
    store: str
    verify_key: VerifyKey | None

    def __post_init__(self) -> None:
        check_run(self.run)
        check_public_id("store", self.store)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write a new description into a folder.

    Raises
    ------
    StoreError
        If there is one already; it is left as it is.
    OSError
        If it cannot be written.
    """
    fields = {
        "format": STORE_FORMAT,
        "run": manifest.run,
        "store": manifest.store,
        "verify_key": None if manifest.verify_key is None else manifest.verify_key.to_text(),
    }
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
    malformed = StoreError(f"{path} is not a description of the format {STORE_FORMAT}")
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        raise malformed from None
    if isinstance(fields, dict) and fields.get("format") == _OLD_FORMAT:
        raise StoreError(
            f"{directory} is a model store of version 1, which this Fedveil no longer reads; "
            "export its rounds with the Fedveil that wrote it"
        )
    if not isinstance(fields, dict) or set(fields) != {"format", "run", "store", "verify_key"}:
        raise malformed
    text = fields["verify_key"]
    if fields["format"] != STORE_FORMAT or not (text is None or isinstance(text, str)):
        raise malformed
    try:
        verify_key = None if text is None else VerifyKey.from_text(text)
        return Manifest(fields["run"], fields["store"], verify_key)
    except (HeaderError, SignatureError):
        raise malformed from None
