"""The model store of a run folder: opened as the run's own, or as one that was exported."""

from __future__ import annotations

from pathlib import Path

from fedveil.server.run_info import RunFolderError, RunInfo, read_info, write_info
from fedveil.server.storage import absolute_spec, open_store, own_signing_key, own_verify_key
from fedveil.vault.signing import VerifyKey
from fedveil.vault.store import ModelStore

__all__ = [
    "MODEL_FOLDER",
    "check_own",
    "model_store_folder",
    "open_model_store",
    "open_own_store",
    "remember_kek",
]

MODEL_FOLDER = "model"


def model_store_folder(path: Path) -> Path:
    """Return where the model store of a run folder lies; an exported store lies in itself."""
    exported = (path / "store.json").exists() and not (path / "run.json").exists()
    return path if exported else path / MODEL_FOLDER


def open_model_store(
    path: Path, kek: str | None = None, signer: VerifyKey | None = None
) -> ModelStore:
    """Open the model store of a run folder, whatever state the rest of it is in.

    Parameters
    ----------
    path : Path
        The run folder, or an exported store.
    kek : str, optional
        A KEK that opens it, where it is not the one that the run remembers.
    signer : VerifyKey, optional
        Whose signature it must bear; see `trusted_signer`.

    Raises
    ------
    RunFolderError
        If it is no run folder, or an exported store and no KEK is named.
    RollbackError
        If it is older than it was when last seen.
    FedveilError
        If the store does not open, or is another one than the run's.
    """
    folder = model_store_folder(path)
    if folder == path:
        if kek is None:
            raise RunFolderError(f"{path}: is a model store without a run; name its key with --kek")
        store = open_store(folder, kek, signer=signer or own_verify_key())
    else:
        store = open_own_store(path, read_info(path, signer), kek)
    store.check_mark()
    return store


def remember_kek(path: Path, spec: str) -> None:
    """Note in a run folder which KEK opens its model store from now on; in an export, nothing.

    Raises
    ------
    FedveilError
        If the folder is no run of this coordinator, or cannot be written.
    """
    if model_store_folder(path) != path:
        info = read_info(path).model_copy(update={"kek": absolute_spec(spec)})
        write_info(path, info, own_signing_key())


def open_own_store(
    path: Path, info: RunInfo, kek: str | None, *, writing: bool = False
) -> ModelStore:
    """Open the model store that belongs to a run, and no other.

    Raises
    ------
    RunFolderError
        If there is another one in its place.
    FedveilError
        If it does not open.
    """
    signer = VerifyKey.from_text(info.signer)
    store = open_store(
        path / MODEL_FOLDER, info.kek if kek is None else kek, signer=signer, writing=writing
    )
    check_own(path, info, store.run, store.store)
    return store


def check_own(path: Path, info: RunInfo, run: str, store: str) -> None:
    """Refuse a store that says it is another one than the run's.

    Raises
    ------
    RunFolderError
        If it does.
    """
    if (run, store) != (info.run, info.store):
        raise RunFolderError(
            f"{path}: the model store in it is {store} of run {run!r}, not {info.store} of "
            f"{info.run!r}; it was put there from elsewhere"
        )
