"""The model store of a run: which KEK opens it, who signs it, and what was seen in it last."""

from __future__ import annotations

from pathlib import Path

from fedveil.errors import FedveilError
from fedveil.home import (
    default_key_file,
    default_signing_key_file,
    make_private,
    marks_dir,
)
from fedveil.vault.errors import KeyFileMissingError
from fedveil.vault.kek.interface import KekProvider
from fedveil.vault.kek.registry import open_kek
from fedveil.vault.keyfile import create_key, load_or_create_key
from fedveil.vault.signing import (
    SigningKey,
    VerifyKey,
    load_or_create_signing_key,
    load_signing_key,
)
from fedveil.vault.store import ModelStore

__all__ = [
    "StorageError",
    "absolute_spec",
    "create_store",
    "default_spec",
    "make_key_file",
    "open_store",
    "own_signing_key",
    "own_verify_key",
    "prepare_kek",
    "signing_key_of",
]

_FILE = "file:"
_PATHS = (_FILE, "passphrase:")


class StorageError(FedveilError):
    """The keys of a model store cannot be made."""


def default_spec() -> str:
    """Return the KEK that a run's model store is made with unless another is named."""
    return f"{_FILE}{default_key_file()}"


def absolute_spec(spec: str) -> str:
    """Return the KEK's name so that it means the same from every working directory."""
    for kind in _PATHS:
        path = spec.removeprefix(kind)
        if path != spec and path:
            return f"{kind}{Path(path).absolute()}"
    return spec


def make_key_file(path: Path) -> str:
    """Make a key file and return the public name of the key.

    Raises
    ------
    StorageError
        If its folder cannot be made.
    KeyFileError
        If something is at the path already, or it cannot be written.
    """
    _make_folder(path.parent)
    return create_key(path).key_id


def prepare_kek(spec: str) -> KekProvider:
    """Return a KEK for a new run; a key file that is not there is made.

    Parameters
    ----------
    spec : str
        The KEK, as `open_kek` takes it.

    Raises
    ------
    StorageError
        If the folder of a key file cannot be made.
    KekError
        If the KEK cannot be used.
    """
    path = spec.removeprefix(_FILE)
    if path != spec and path:
        _make_folder(Path(path).parent)
        load_or_create_key(Path(path))
    return open_kek(spec)


def create_store(directory: Path, kek: KekProvider, run: str) -> ModelStore:
    """Make a store that this coordinator signs.

    Parameters
    ----------
    directory : Path
        Where.
    kek : KekProvider
        What opens it.
    run : str
        Name of the run.

    Raises
    ------
    FedveilError
        If the KEK or the signing key cannot be used, or the store cannot be made.
    """
    signing_key = own_signing_key()
    return ModelStore.create(directory, kek, run, marks=marks_dir(), signing_key=signing_key)


def open_store(
    directory: Path, spec: str, *, signer: VerifyKey | None, writing: bool = False
) -> ModelStore:
    """Open the store of a run.

    Parameters
    ----------
    directory : Path
        Where.
    spec : str
        A KEK that opens it.
    signer : VerifyKey, optional
        Whose signature its rounds must bear; by default what the store itself says.
    writing : bool
        Whether rounds will be saved, which takes the signing key that it was made with.

    Raises
    ------
    FedveilError
        If there is no such store, or a key is missing or is another one.
    """
    kek = open_kek(spec)
    signing_key = signing_key_of(signer) if writing else None
    return ModelStore(directory, kek, marks=marks_dir(), signing_key=signing_key, verify_key=signer)


def signing_key_of(signer: VerifyKey | None) -> SigningKey:
    """Return this machine's signing key, which must be the one that the run was begun with.

    Raises
    ------
    StorageError
        If it is another one, or there is none.
    KeyFileError
        If it cannot be read.
    """
    path = default_signing_key_file()
    try:
        key = load_signing_key(path)
    except KeyFileMissingError:
        raise StorageError(
            f"there is no signing key at {path}, and a run goes on with the one that it was begun "
            "with; copy it from the machine where that was, or from a backup"
        ) from None
    if signer is not None and signer != key.verify_key:
        raise StorageError(
            f"the signing key {path} is that of {key.verify_key.to_text()}, and the run was begun "
            f"with that of {signer.to_text()}; a run goes on with its own"
        )
    return key


def own_verify_key() -> VerifyKey | None:
    """Return what this coordinator's signatures are checked with; None where nothing was signed.

    Raises
    ------
    KeyFileError
        If there is a signing key that cannot be read.
    """
    try:
        return load_signing_key(default_signing_key_file()).verify_key
    except KeyFileMissingError:
        return None


def own_signing_key() -> SigningKey:
    """Return the key that this coordinator signs with; it is made if it is not there.

    Raises
    ------
    StorageError
        If its folder cannot be made.
    KeyFileError
        If it cannot be read or written.
    """
    path = default_signing_key_file()
    _make_folder(path.parent)
    return load_or_create_signing_key(path)


def _make_folder(folder: Path) -> None:
    try:
        make_private(folder)
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be made for a key file ({error.strerror}); set FEDVEIL_HOME, or "
            "name another key (--kek; run.kek under flwr run)"
        ) from None
