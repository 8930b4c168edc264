"""The run that is served: its settings, its encrypted store, its report."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fedveil.config import Config
from fedveil.home import marks_dir
from fedveil.server.inference.errors import ServeError
from fedveil.server.run_info import read_info, read_settings
from fedveil.server.run_store import MODEL_FOLDER, check_own
from fedveil.vault.kek.registry import open_kek
from fedveil.vault.reader import StoreReader
from fedveil.vault.signing import VerifyKey

__all__ = ["RunSource", "open_source"]

_MOST_REPORT = 64 * 2**20
_REMEMBERED = 4


@dataclass(frozen=True)
class RunSource:
    """A run folder that rounds are served from; it may still be written by a training run.

    Attributes
    ----------
    path : Path
        The folder.
    config : Config
        Settings of the run, which the coordinator signed.
    reader : StoreReader
        Its store, whose rounds must be signed by the coordinator.
    data_dir : Path or None
        Where the run found the data files of its task.
    """

    path: Path
    config: Config
    reader: StoreReader
    data_dir: Path | None

    def report_sha256(self, round_: int) -> str | None:
        """Return the sha256 of ``report.json``, if it is the report up to a round; else None."""
        path = self.path / "report.json"
        try:
            status = path.stat()
            told, sha256 = _read_report(path, status.st_ino, status.st_mtime_ns, status.st_size)
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            return None
        return sha256 if told == round_ else None


@lru_cache(_REMEMBERED)
def _read_report(path: Path, *_: int) -> tuple[object, str]:
    """Return round and hash of a report; again only if what tells it from another has changed."""
    with path.open("rb") as file:
        content = file.read(_MOST_REPORT)
    return json.loads(content)["model"]["round"], hashlib.sha256(content).hexdigest()


def open_source(run: Path, kek: str | None, signer: VerifyKey | None) -> RunSource:
    """Open a run folder to serve it.

    Parameters
    ----------
    run : Path
        The folder, or the model store in it.
    kek : str or None
        A KEK that opens the store; None for the one that the run was made with.
    signer : VerifyKey or None
        Whose signature run and rounds must have; see `fedveil.server.signed.trusted_signer`.

    Raises
    ------
    ServeError
        If it is a store without a run.
    SignatureError
        If run or store is somebody else's, or was changed, or the rounds are not signed.
    FedveilError
        If it is no run folder, the store does not open, or it is another one than the run's.
    """
    path = run.absolute()
    if (path / "store.json").exists() and (path.parent / "run.json").exists():
        path = path.parent
    if not (path / "run.json").exists() and (path / "store.json").exists():
        raise ServeError(
            f"{run}: is a model store without a run, which says nothing of its task; name a run "
            "folder"
        )
    info = read_info(path, signer)
    config = read_settings(path, info)
    reader = StoreReader(
        path / MODEL_FOLDER,
        open_kek(info.kek if kek is None else kek),
        marks=marks_dir(),
        verify_key=VerifyKey.from_text(info.signer),
    )
    check_own(path, info, reader.run, reader.store)
    return RunSource(path, config, reader, info.data_dir)
