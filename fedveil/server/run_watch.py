"""A deployed run as its coordinator sees it: submitted, followed round by round, to its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedveil.errors import FedveilError
from fedveil.server.flower_cli import FlowerCli, FlowerCliError
from fedveil.server.records import RoundRecord

__all__ = [
    "ListedRun",
    "RunLostError",
    "RunWatcher",
    "SuperLinkLostError",
    "committed_rounds",
    "follow",
    "listed_runs",
    "submit",
]

_LOOK = 0.5
_STATUS_EVERY = 3.0
_LOST_AFTER = 30.0
_ENDED_AFTER = 2
"""Looks in a row at which nobody listens; a SuperLink that is started again knows no run."""


class RunLostError(FedveilError):
    """A run cannot be followed: its figures are damaged, or the SuperLink is lost."""


class SuperLinkLostError(RunLostError):
    """The SuperLink has ended, no longer answers or no longer knows the run."""


class ListedRun(BaseModel):
    """A run as ``flwr list`` tells of it.

    Parameters
    ----------
    number : str
        Its number at the SuperLink.
    status : str
        ``pending``, ``starting``, ``running``, or ``finished:`` and how.
    details : str
        Why, where it failed.
    began : str
        When it was submitted.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    number: str = Field(alias="run-id")
    status: str
    details: str = Field(alias="status-details")
    began: str = Field(alias="pending-at")

    @property
    def is_over(self) -> bool:
        """Whether it has ended, well or not."""
        return self.status.startswith("finished")

    @property
    def is_complete(self) -> bool:
        """Whether it has ended well."""
        return self.status == "finished:completed"


class RunWatcher(Protocol):
    """Whoever follows a run."""

    def round_done(self, record: RoundRecord) -> None:
        """Hear of a committed round."""

    def status(self, status: str) -> None:
        """Hear that the SuperLink tells another status than before."""


def submit(flower: FlowerCli, app: Path, connection: str, config: Path) -> str:
    """Submit a run and return its number at the SuperLink.

    Parameters
    ----------
    flower : FlowerCli
        Asks the SuperLink.
    app : Path
        Directory of the app.
    connection : str
        The SuperLink's name in Flower's configuration.
    config : Path
        TOML file of what the run is told beside the app's own settings.

    Raises
    ------
    FlowerCliError
        If the SuperLink does not take it.
    """
    found = flower.ask("run", str(app), connection, "--run-config", str(config))
    return str(found["run-id"])


def listed_runs(flower: FlowerCli, connection: str, number: str | None = None) -> list[ListedRun]:
    """Return the runs that a SuperLink knows since it was started, or one of them.

    Raises
    ------
    FlowerCliError
        If it does not answer, or does not know the run.
    """
    which = ("--run-id", number) if number else ()
    runs = flower.ask("list", connection, *which)["runs"]
    assert isinstance(runs, list)  # noqa: S101  # as Flower documents
    return [ListedRun.model_validate(run) for run in runs]


def committed_rounds(folder: Path) -> list[RoundRecord]:
    """Return the figures of a run's committed rounds, without any key; empty before the first.

    Raises
    ------
    RunLostError
        If they cannot be read.
    """
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [RoundRecord.model_validate_json(line) for line in lines]
    except FileNotFoundError:
        return []
    except (OSError, ValidationError):
        raise RunLostError(f"{folder / 'metrics.jsonl'}: cannot be read") from None


@dataclass
class _Seen:
    rounds: int
    status: str = ""
    answered: float = 0.0
    closed: int = 0


def follow(
    flower: FlowerCli,
    connection: str,
    number: str,
    folder: Path,
    watcher: RunWatcher,
    has_closed: Callable[[], bool],
) -> ListedRun:
    """Tell a watcher of each round as it is committed, until the run ends; return how it did.

    Parameters
    ----------
    flower : FlowerCli
        Asks the SuperLink.
    connection : str
        Its name in Flower's configuration.
    number : str
        The run, as `submit` returned it.
    folder : Path
        Its run folder; rounds that stand in it already are not told of.
    watcher : RunWatcher
        Is told.
    has_closed : callable
        Asked, when the SuperLink does not answer, whether its port is certainly closed.

    Raises
    ------
    SuperLinkLostError
        If the SuperLink has ended, or does not tell of the run for half a minute.
    RunLostError
        If the figures of the committed rounds cannot be read.
    """
    seen = _Seen(rounds=len(committed_rounds(folder)), answered=time.monotonic())
    next_status = 0.0
    while True:
        run = None
        if time.monotonic() >= next_status:
            run = _status(flower, connection, number, seen, has_closed)
            next_status = time.monotonic() + _STATUS_EVERY
        # After the status: a run that is over has committed all that it ever will.
        records = committed_rounds(folder)
        for record in records[seen.rounds :]:
            watcher.round_done(record)
        seen.rounds = len(records)
        if run is not None and run.status != seen.status:
            watcher.status(run.status)
            seen.status = run.status
        if run is not None and run.is_over:
            return run
        time.sleep(_LOOK)


def _status(
    flower: FlowerCli,
    connection: str,
    number: str,
    seen: _Seen,
    has_closed: Callable[[], bool],
) -> ListedRun | None:
    try:
        (run,) = listed_runs(flower, connection, number)
    except FlowerCliError as error:
        seen.closed = seen.closed + 1 if has_closed() else 0
        if seen.closed >= _ENDED_AFTER:
            raise SuperLinkLostError(
                f"the SuperLink has ended, and what it knew of run {number} with it"
            ) from None
        if time.monotonic() - seen.answered > _LOST_AFTER:
            raise SuperLinkLostError(
                f"the SuperLink does not tell of run {number}: {error}"
            ) from None
        return None
    seen.answered, seen.closed = time.monotonic(), 0
    return run
