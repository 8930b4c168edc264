"""What a run leaves on disk, and how a round of it is committed."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from fedveil import __version__
from fedveil.config import Config
from fedveil.home import marks_dir
from fedveil.privacy.journal import PrivacyJournal
from fedveil.server.records import RoundRecord
from fedveil.server.run_info import (
    SETTINGS_NAME,
    RunFolderError,
    RunInfo,
    read_info,
    read_settings,
    replace_text,
    write_info,
)
from fedveil.server.run_store import MODEL_FOLDER, check_own, open_own_store
from fedveil.server.storage import create_store, own_signing_key, prepare_kek
from fedveil.vault.checks import signed_headers
from fedveil.vault.header import Header
from fedveil.vault.layout import Layout
from fedveil.vault.signing import VerifyKey
from fedveil.vault.store import ModelStore

__all__ = [
    "NewRun",
    "RunFolder",
    "now",
]

_RECORD = "record"


@dataclass(frozen=True)
class NewRun:
    """What a new run folder is told of the run.

    Parameters
    ----------
    run : str
        Name of the run.
    kek : str
        As in `RunInfo`.
    data_dir : Path or None
        Data directory of the public test set.
    public_test : bool
        Whether the coordinator holds one.
    dimension : int, optional
        How many floating-point numbers the model has, for the report of distributed noise.
    """

    run: str
    kek: str
    data_dir: Path | None
    public_test: bool
    dimension: int | None = None


class RunFolder:
    """One run on disk: settings, journal, metrics, encrypted model, report.

    The model file of a round is written last but for the metrics, and its header carries them:
    its rename is the commit of the round. Whatever a crash leaves half done behind that point
    is put right when the folder is opened for writing. Figures and journal are read without any
    key that opens the models, also after these were destroyed.

    Use `create` or `open`.
    """

    def __init__(
        self, path: Path, config: Config, info: RunInfo, open_models: Callable[[], ModelStore]
    ) -> None:
        self.path = path
        self.config = config
        self.info = info
        self._open_models = open_models
        self.journal = PrivacyJournal(path / "privacy.jsonl")
        self.records: list[RoundRecord] = []

    @cached_property
    def store(self) -> ModelStore:
        """The model store, opened when it is first asked for."""
        return self._open_models()

    @property
    def kept(self) -> list[int]:
        """The rounds whose models are kept, in order."""
        return Layout(self.path / MODEL_FOLDER).rounds()

    def model_path(self, round_: int) -> Path:
        """Return where the model of a round lies, or would lie."""
        return Layout(self.path / MODEL_FOLDER).path("model", round_)

    @classmethod
    def check_free(cls, path: Path) -> None:
        """Refuse a path that holds something already.

        Raises
        ------
        RunFolderError
            If it is no directory, or a directory that is not empty.
        """
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise RunFolderError(f"{path}: is not a directory; choose another --out")
        if (path / SETTINGS_NAME).exists():
            raise RunFolderError(f"{path}: holds a run already; use --resume or another --out")
        try:
            if path.exists() and any(path.iterdir()):
                raise RunFolderError(f"{path}: is not empty; choose another --out")
        except OSError as error:
            raise RunFolderError(f"{path}: cannot be read ({error.strerror})") from None

    @classmethod
    def create(cls, path: Path, config: Config, new: NewRun) -> RunFolder:
        """Make a new run folder, and the keys where there are none.

        Raises
        ------
        RunFolderError
            If the path is taken or cannot be written.
        FedveilError
            If a key cannot be used or made.
        """
        cls.check_free(path)
        kek, settings, signing_key = prepare_kek(new.kek), config.to_toml(), own_signing_key()
        is_there = path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o700)
        except OSError as error:
            raise RunFolderError(f"{path}: cannot be made ({error.strerror})") from None
        try:
            store = create_store(path / MODEL_FOLDER, kek, new.run)
        except BaseException:
            # The KEK is used for the first time here; where that fails nothing is to be in the way.
            shutil.rmtree(path / MODEL_FOLDER if is_there else path, ignore_errors=True)
            raise
        info = RunInfo(
            run=new.run,
            created=now(),
            fedveil=__version__,
            kek=new.kek,
            signer=signing_key.verify_key.to_text(),
            store=store.store,
            config_sha256=hashlib.sha256(settings.encode()).hexdigest(),
            data_dir=new.data_dir,
            public_test=new.public_test,
            dimension=new.dimension,
        )
        write_info(path, info, signing_key)
        # Last: a folder with settings is a folder that can be resumed.
        replace_text(path / SETTINGS_NAME, settings)
        return cls(path, config, info, lambda: store)

    @classmethod
    def open(
        cls,
        path: Path,
        kek: str | None = None,
        signer: VerifyKey | None = None,
        *,
        writing: bool = False,
    ) -> RunFolder:
        """Open a run folder to read or to continue.

        Parameters
        ----------
        path : Path
            The folder.
        kek : str, optional
            A KEK that opens the model store, where it is no longer the one that the run was made
            with.
        signer : VerifyKey, optional
            Whose signature run and models must bear; see `trusted_signer`.
        writing : bool
            Whether rounds will be committed.

        Raises
        ------
        RunFolderError
            If it is no run folder.
        FedveilError
            If the key is wrong, or the store or the journal is damaged.
        """
        info = read_info(path, signer)
        # Before the keys are asked for: who edited the settings should hear of that first.
        config = read_settings(path, info)
        store = open_own_store(path, info, kek, writing=True) if writing else None
        if store is not None:
            # Before anything that another writer may be changing is read.
            store.claim()
        verify_key = VerifyKey.from_text(info.signer)
        manifest, headers = signed_headers(path / MODEL_FOLDER, verify_key, marks_dir())
        check_own(path, info, manifest.run, manifest.store)
        folder = cls(
            path, config, info, lambda: store or open_own_store(path, info, kek, writing=False)
        )
        folder.records = folder._committed_records(headers)
        return folder

    @property
    def committed(self) -> int:
        """The last committed round; 0 when there is none."""
        return self.records[-1].round if self.records else 0

    def commit(
        self,
        record: RoundRecord,
        arrays: Mapping[str, NDArray[np.generic]],
        strategy_state: Mapping[str, NDArray[np.generic]],
    ) -> None:
        """Commit a round: model, strategy state and metrics together, or none of them."""
        self.store.save(
            record.round,
            arrays,
            meta={_RECORD: record.model_dump_json(), **record.numbers},
            strategy_state=strategy_state,
        )
        self.records.append(record)
        self.write_metrics()

    def write_metrics(self) -> None:
        """Write ``metrics.jsonl`` from the committed rounds."""
        lines = "".join(record.model_dump_json() + "\n" for record in self.records)
        replace_text(self.path / "metrics.jsonl", lines)

    def model_sha256(self) -> str | None:
        """Return the sha256 of the newest encrypted model file; None before the first."""
        if not self.records:
            return None
        return hashlib.sha256(self.model_path(self.committed).read_bytes()).hexdigest()

    def _committed_records(self, headers: Sequence[Header]) -> list[RoundRecord]:
        """Return the figures of the committed rounds.

        They are read from the signed headers of the models; ``metrics.jsonl`` has those of rounds
        whose model was removed since.
        """
        kept = {header.round: self._sealed_record(header) for header in headers}
        removed = [
            record
            for record in self._written_records()
            if record.round not in kept and record.round < max(kept, default=0)
        ]
        return sorted([*removed, *kept.values()], key=lambda record: record.round)

    def _written_records(self) -> list[RoundRecord]:
        try:
            lines = (self.path / "metrics.jsonl").read_bytes().splitlines()
            return [RoundRecord.model_validate_json(line) for line in lines]
        except FileNotFoundError:
            return []
        except (OSError, ValidationError):
            raise RunFolderError(
                f"{self.path / 'metrics.jsonl'}: cannot be read; delete it, and it is made anew "
                "from the checkpoints"
            ) from None

    def _sealed_record(self, header: Header) -> RoundRecord:
        try:
            return RoundRecord.model_validate_json(str(header.meta[_RECORD]))
        except (KeyError, ValidationError):
            raise RunFolderError(
                f"{self.model_path(header.round)}: holds no figures of its round"
            ) from None


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
