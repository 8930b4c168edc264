"""What a run leaves on disk, and how a round of it is committed."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedveil.config import Config, parse_config
from fedveil.errors import FedveilError
from fedveil.privacy.journal import PrivacyJournal
from fedveil.server.storage import create_store, open_store
from fedveil.settings import read_toml
from fedveil.vault.signing import VerifyKey
from fedveil.vault.store import ModelStore

__all__ = [
    "RoundRecord",
    "RunFolder",
    "RunFolderError",
    "RunInfo",
    "model_store_folder",
    "now",
    "open_model_store",
    "read_info",
    "remember_kek",
    "write_atomically",
]

_RECORD = "record"
_MODEL = "model"


class RunFolderError(FedveilError):
    """A run folder cannot be made, read or continued."""


class RunInfo(BaseModel):
    """What names a run and stays on this machine.

    `kek` opens the model store, and its rounds are signed with the key that `signer` verifies.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: Annotated[str, Field(min_length=1)]
    created: str
    fedveil: str
    kek: Annotated[str, Field(min_length=1)]
    signer: Annotated[str, Field(min_length=1)]
    data_dir: Path | None
    public_test: bool


class RoundRecord(BaseModel):
    """The figures of one committed round.

    Parameters
    ----------
    round, attempt : int
        Which round, and which try at it.
    clients, failed : int
        Replies in the model, and clients left out.
    seconds : float
        Wall time of training and aggregation.
    epsilon : float, optional
        Largest epsilon of any client so far; None where nothing is claimed.
    test : dict
        Metrics on the public test set; empty where there is none.
    client_mean, client_weighted : dict
        Metrics on the clients' own test records, averaged over clients and over records; empty
        unless the configuration lets clients tell them.
    train_loss : float, optional
        Weighted mean of the training losses that clients tell, without privacy.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    round: int
    attempt: int
    clients: int
    failed: int
    seconds: float
    epsilon: float | None
    test: dict[str, float] = {}
    client_mean: dict[str, float] = {}
    client_weighted: dict[str, float] = {}
    train_loss: float | None = None

    @property
    def accuracy(self) -> float | None:
        """Accuracy on the public test set or, without one, over the clients' records."""
        return self.test.get("accuracy", self.client_weighted.get("accuracy"))

    @property
    def loss(self) -> float | None:
        """Loss, where accuracy is from."""
        return self.test.get("loss", self.client_weighted.get("loss"))


class RunFolder:
    """One run on disk: settings, journal, metrics, encrypted model, report.

    The model file of a round is written last but for the metrics, and its header carries them:
    its rename is the commit of the round. Whatever a crash leaves half done behind that point
    is put right when the folder is opened for writing.

    Use `create` or `open`.
    """

    def __init__(self, path: Path, config: Config, info: RunInfo, store: ModelStore) -> None:
        self.path = path
        self.config = config
        self.info = info
        self.store = store
        self.journal = PrivacyJournal(path / "privacy.jsonl")
        self.records: list[RoundRecord] = []

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
        if (path / "config.toml").exists():
            raise RunFolderError(f"{path}: holds a run already; use --resume or another --out")
        try:
            if path.exists() and any(path.iterdir()):
                raise RunFolderError(f"{path}: is not empty; choose another --out")
        except OSError as error:
            raise RunFolderError(f"{path}: cannot be read ({error.strerror})") from None

    @classmethod
    def create(cls, path: Path, config: Config, info: RunInfo) -> RunFolder:
        """Make a new run folder, and the key file if there is none.

        Raises
        ------
        RunFolderError
            If the path is taken or cannot be written.
        """
        cls.check_free(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o700)
        except OSError as error:
            raise RunFolderError(f"{path}: cannot be made ({error.strerror})") from None
        store = create_store(path / _MODEL, info.kek, info.run)
        write_atomically(path / "run.json", info.model_dump_json(indent=2) + "\n")
        # Last: a folder with settings is a folder that can be resumed.
        write_atomically(path / "config.toml", config.to_toml())
        return cls(path, config, info, store)

    @classmethod
    def open(cls, path: Path, kek: str | None = None, *, writing: bool = False) -> RunFolder:
        """Open a run folder to read or to continue.

        Parameters
        ----------
        path : Path
            The folder.
        kek : str, optional
            A KEK that opens the model store, where it is no longer the one that the run was made
            with.
        writing : bool
            Whether rounds will be committed.

        Raises
        ------
        RunFolderError
            If it is no run folder.
        FedveilError
            If the key is wrong, or the store or the journal is damaged.
        """
        info = read_info(path)
        config = parse_config(read_toml(path / "config.toml"), str(path / "config.toml"))
        store = open_store(
            path / _MODEL, kek or info.kek, signer=VerifyKey.from_text(info.signer), writing=writing
        )
        if store.run != info.run:
            raise RunFolderError(
                f"{path}: the model store in it is of run {store.run!r}, not of {info.run!r}; it "
                "was put there from elsewhere"
            )
        folder = cls(path, config, info, store)
        folder.records = folder._committed_records()
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
            meta={_RECORD: record.model_dump_json(), **_numbers(record)},
            strategy_state=strategy_state,
        )
        self.records.append(record)
        self.write_metrics()

    def write_metrics(self) -> None:
        """Write ``metrics.jsonl`` from the committed rounds."""
        lines = "".join(record.model_dump_json() + "\n" for record in self.records)
        write_atomically(self.path / "metrics.jsonl", lines)

    def model_sha256(self) -> str | None:
        """Return the sha256 of the newest encrypted model file; None before the first."""
        if not self.records:
            return None
        return hashlib.sha256(self.store.path(self.committed).read_bytes()).hexdigest()

    def _committed_records(self) -> list[RoundRecord]:
        """Return the figures of the committed rounds.

        ``metrics.jsonl`` is read where it holds them, also for rounds whose model was removed
        since; a round that a crash kept out of it is read from its checkpoint.
        """
        kept = self.store.rounds()
        written = {r.round: r for r in self._written_records() if kept and r.round <= kept[-1]}
        return [
            written[number] if number in written else self._sealed_record(number)
            for number in sorted(written.keys() | set(kept))
        ]

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

    def _sealed_record(self, number: int) -> RoundRecord:
        meta = self.store.load(number).header.meta
        try:
            return RoundRecord.model_validate_json(str(meta[_RECORD]))
        except (KeyError, ValidationError):
            raise RunFolderError(
                f"{self.store.path(number)}: holds no figures of its round"
            ) from None


def _numbers(record: RoundRecord) -> dict[str, float]:
    """Return what rounds can be chosen by: `fedveil models gc --keep-best`."""
    figures = {"accuracy": record.accuracy, "loss": record.loss, "epsilon": record.epsilon}
    return {name: value for name, value in figures.items() if value is not None}


def read_info(path: Path) -> RunInfo:
    """Read what names the run in a folder.

    Raises
    ------
    RunFolderError
        If it is no run folder.
    """
    try:
        return RunInfo.model_validate_json((path / "run.json").read_bytes())
    except (OSError, ValidationError):
        raise RunFolderError(f"{path}: is not a run folder (no readable run.json)") from None


def model_store_folder(path: Path) -> Path:
    """Return where the model store of a run folder lies; an exported store lies in itself."""
    return path if (path / "store.json").exists() else path / _MODEL


def open_model_store(path: Path, kek: str | None = None) -> ModelStore:
    """Open the model store of a run folder, whatever state the rest of it is in.

    Raises
    ------
    RunFolderError
        If it is no run folder, or an exported store and no KEK is named.
    FedveilError
        If the store does not open.
    """
    folder = model_store_folder(path)
    if folder != path:
        info = read_info(path)
        signer = VerifyKey.from_text(info.signer)
        return open_store(folder, kek or info.kek, signer=signer)
    if kek is None:
        raise RunFolderError(f"{path}: is a model store without a run; name its key with --kek")
    return open_store(folder, kek, signer=None)


def remember_kek(path: Path, spec: str) -> None:
    """Note in a run folder which KEK opens its model store from now on."""
    info = read_info(path).model_copy(update={"kek": spec})
    write_atomically(path / "run.json", info.model_dump_json(indent=2) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Replace a file by `text`, so that a crash leaves the old or the new one, whole.

    Raises
    ------
    RunFolderError
        If it cannot be written.
    """
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise RunFolderError(f"{path}: cannot be written ({error.strerror})") from None


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
