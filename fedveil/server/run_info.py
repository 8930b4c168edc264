"""What names a run and where its keys are: ``run.json``, signed by the coordinator.

Whoever can write into a run folder could otherwise put a model store of their own there, under a
key of their own, and have it taken for the run's. The signature is checked with the coordinator's
own key, or with one that the user names; only where there is neither is the folder believed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedveil.config import Config, parse_config
from fedveil.errors import FedveilError
from fedveil.server.signed import (
    SignedFileError,
    parse_signed,
    signed_text,
    trusted_signer,
)
from fedveil.settings import read_toml
from fedveil.vault.errors import SignatureError, VaultError
from fedveil.vault.files import open_private, read_small, replace_file
from fedveil.vault.signing import SigningKey, VerifyKey

__all__ = [
    "SETTINGS_NAME",
    "RunFolderError",
    "RunInfo",
    "read_info",
    "read_settings",
    "replace_text",
    "write_info",
]

SETTINGS_NAME = "config.toml"
_NAME = "run.json"
_MAGIC = b"fedveil/run/1\n"
_MOST_BYTES = 1 << 16


class RunFolderError(FedveilError):
    """A run folder cannot be made, read or continued."""


class RunInfo(BaseModel):
    """What names a run and stays on this machine.

    Parameters
    ----------
    run, created, fedveil : str
        Name of the run, when it was begun, and with which version.
    kek : str
        What opens the model store, as `fedveil.vault.kek.registry.open_kek` takes it.
    signer : str
        Verify key of the coordinator, base64.
    store : str
        Public id of the model store.
    config_sha256 : str
        Of ``config.toml``.
    data_dir : Path, optional
        Data directory of the public test set.
    public_test : bool
        Whether the coordinator holds one.
    dimension : int, optional
        How many floating-point numbers the model has; None in runs of an earlier version.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: Annotated[str, Field(min_length=1)]
    created: str
    fedveil: str
    kek: Annotated[str, Field(min_length=1)]
    signer: Annotated[str, Field(min_length=1)]
    store: Annotated[str, Field(min_length=1)]
    config_sha256: str
    data_dir: Path | None
    public_test: bool
    dimension: int | None = None


def write_info(path: Path, info: RunInfo, signing_key: SigningKey) -> None:
    """Sign what names a run, and write it into the run's folder.

    Raises
    ------
    RunFolderError
        If it cannot be written.
    """
    fields = info.model_dump(mode="json", exclude={"signer"})
    replace_text(path / _NAME, signed_text(fields, _MAGIC, signing_key))


def read_info(path: Path, signer: VerifyKey | None = None) -> RunInfo:
    """Read what names the run in a folder.

    Parameters
    ----------
    path : Path
        The run folder.
    signer : VerifyKey, optional
        Whose signature it must bear; see `trusted_signer`.

    Raises
    ------
    RunFolderError
        If it is no run folder, or what names the run is damaged or cannot be read.
    SignatureError
        If it was signed by somebody else, or changed.
    """
    file = path / _NAME
    try:
        with open_private(file) as (descriptor, _):
            found = parse_signed(read_small(descriptor, _MOST_BYTES))
        info = RunInfo.model_validate(found.fields)
    except (FileNotFoundError, NotADirectoryError):
        raise RunFolderError(
            f"{path}: is not a run folder ({_not_there(path)}); name one that `fedveil simulate` "
            "or a deployed run has made, for example under runs/"
        ) from None
    except OSError as error:
        raise RunFolderError(
            f"{file}: cannot be read ({error.strerror}); ask as the user that the run belongs to"
        ) from None
    except VaultError as error:
        raise RunFolderError(f"run refused: {error}") from None
    except (ValidationError, SignedFileError):
        raise RunFolderError(
            f"{file}: is damaged, or of another version of Fedveil; restore it from a copy"
        ) from None
    key = trusted_signer(signer, found.signer)
    if key != found.signer:
        raise SignatureError(
            f"{path}: is a run of the coordinator {found.signer.to_text()}, not of "
            f"{key.to_text()}; if you trust it, name it with --signer"
        )
    try:
        found.check(_MAGIC, key)
    except SignatureError:
        raise SignatureError(
            f"{path / _NAME}: was changed after the coordinator signed it; restore it from a copy"
        ) from None
    return info


def _not_there(path: Path) -> str:
    if not path.exists():
        return "nothing is there"
    return f"there is no {_NAME} in it" if path.is_dir() else "it is a file"


def read_settings(path: Path, info: RunInfo) -> Config:
    """Read the settings that a run was begun with.

    Raises
    ------
    RunFolderError
        If they were changed since.
    FedveilError
        If they cannot be read.
    """
    settings = path / SETTINGS_NAME
    config = parse_config(read_toml(settings), str(settings))
    try:
        found = hashlib.sha256(settings.read_bytes()).hexdigest()
    except OSError as error:
        raise RunFolderError(f"{settings}: cannot be read ({error.strerror})") from None
    if found != info.config_sha256:
        raise RunFolderError(
            f"{settings}: was changed since the run was begun, and a run keeps its settings; "
            "restore it, or begin another run with the new ones"
        )
    return config


def replace_text(path: Path, text: str) -> None:
    """Replace a file by `text`, so that a crash leaves the old or the new one, whole.

    Raises
    ------
    RunFolderError
        If it cannot be written.
    """
    content = memoryview(text.encode())
    try:
        replace_file(path, lambda sink: sink.write(content))
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be written ({error.strerror})") from None
