"""The append-only record of what a run releases, written before it is released."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fedveil.errors import FedveilError
from fedveil.privacy.accounting import Release, compose

__all__ = ["Charges", "Done", "Intent", "JournalError", "PrivacyJournal", "newest_noise"]


class JournalError(FedveilError):
    """The journal cannot be read or written, or contradicts itself."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    round: Annotated[int, Field(ge=1)]
    attempt: Annotated[int, Field(ge=1)]


class Intent(_Entry):
    """A round is about to ask these clients for these releases.

    Parameters
    ----------
    round, attempt : int
        Which round, and which try at it; both start at 1.
    clients : tuple of str
        The cohort.
    releases : tuple of Release
        What each of them will release.
    """

    event: Literal["intent"] = "intent"
    clients: tuple[str, ...]
    releases: tuple[Release, ...]


class Done(_Entry):
    """These clients answered, having taken this many optimiser steps."""

    event: Literal["done"] = "done"
    steps: dict[str, int]


_ENTRY: TypeAdapter[Intent | Done] = TypeAdapter(
    Annotated[Intent | Done, Field(discriminator="event")]
)


class Charges:
    """What the clients are charged with for the entries of a journal, or of a report.

    Parameters
    ----------
    entries : sequence of Intent or Done
        In the order written.
    """

    def __init__(self, entries: Sequence[Intent | Done]) -> None:
        reported = {(e.round, e.attempt): e.steps for e in entries if isinstance(e, Done)}
        self._charged: list[tuple[Intent, Mapping[str, int]]] = [
            (e, reported.get((e.round, e.attempt), {})) for e in entries if isinstance(e, Intent)
        ]

    def releases_by_client(
        self, *, until_round: int | None = None
    ) -> dict[str, tuple[Release, ...]]:
        """Return everything that each client released, grouped.

        A client counts with what it was asked for, or with what it reported where that is
        more, never with less.

        Parameters
        ----------
        until_round : int, optional
            Leave out later rounds.
        """
        released: dict[str, list[Release]] = defaultdict(list)
        for intent, steps in self._charged:
            if until_round is not None and intent.round > until_round:
                continue
            for client in intent.clients:
                released[client].extend(intent.releases)
                # Only training is counted in steps, and it stands first.
                training = intent.releases[0] if intent.releases else None
                if training is not None and steps.get(client, 0) > training.count:
                    more = steps[client] - training.count
                    released[client].append(replace(training, count=more))
        return {client: compose(releases) for client, releases in released.items()}

    def steps_by_client(self) -> dict[str, int]:
        """Return the optimiser steps that each client is charged with."""
        total: Counter[str] = Counter()
        for intent, steps in self._charged:
            planned = intent.releases[0].count if intent.releases else 0
            for client in intent.clients:
                total[client] += max(planned, steps.get(client, 0))
        return dict(total)


def newest_noise(entries: Sequence[Intent | Done]) -> float | None:
    """Return the noise multiplier of the newest training; None before the first, or without."""
    releases = [e.releases for e in entries if isinstance(e, Intent) and e.releases]
    return releases[-1][0].noise_multiplier if releases else None


class PrivacyJournal:
    """One run's releases, one JSON object a line.

    An intent is on the disk before the clients are asked, and counts in full from then on,
    whether or not an answer ever comes: a crash over-counts and never under-counts. No epsilon
    is stored; it is computed from the entries whenever it is wanted.

    Parameters
    ----------
    path : Path
        The file; made at the first entry. A last line torn by a crash does not count, since it
        was not yet durable when the crash came, and nothing had been released for it. The next
        entry takes its place.

    Raises
    ------
    JournalError
        If the file cannot be read or a line of it is not an entry.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: list[Intent | Done] = []
        self._size = 0
        for line in _read_whole_lines(path):
            self._entries.append(_parse(path, len(self._entries) + 1, line))
            self._size += len(line)

    @property
    def entries(self) -> Sequence[Intent | Done]:
        """All entries, in the order written."""
        return tuple(self._entries)

    def attempts(self, round_: int) -> int:
        """Return how often a round has been tried."""
        return sum(isinstance(e, Intent) and e.round == round_ for e in self._entries)

    def intend(self, round_: int, clients: Sequence[str], releases: Sequence[Release]) -> Intent:
        """Write that a round is about to ask `clients` for `releases`, and make it durable.

        Raises
        ------
        JournalError
            If it cannot be written; the round must then not be asked for.
        """
        intent = Intent(
            round=round_,
            attempt=self.attempts(round_) + 1,
            clients=tuple(clients),
            releases=tuple(releases),
        )
        self._append(intent)
        return intent

    def done(self, intent: Intent, steps: Mapping[str, int]) -> None:
        """Write which clients answered an intent, and with how many steps."""
        unasked = sorted(set(steps) - set(intent.clients))
        if unasked:
            raise JournalError(f"round {intent.round}: {unasked[0]} answered without being asked")
        self._append(Done(round=intent.round, attempt=intent.attempt, steps=dict(steps)))

    def releases_by_client(
        self, *, until_round: int | None = None
    ) -> dict[str, tuple[Release, ...]]:
        """Return everything that each client released; see `Charges`."""
        return Charges(self._entries).releases_by_client(until_round=until_round)

    def steps_by_client(self) -> dict[str, int]:
        """Return the optimiser steps that each client is charged with."""
        return Charges(self._entries).steps_by_client()

    def _append(self, entry: Intent | Done) -> None:
        line = entry.model_dump_json().encode() + b"\n"
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            with os.fdopen(os.open(self._path, flags, 0o600), "r+b") as file:
                file.seek(self._size)
                if b"\n" in file.read():
                    raise JournalError(
                        f"{self._path}: another process wrote to it meanwhile; nothing of it was "
                        "changed here. Resume the run when that process has ended"
                    )
                # Whatever a crash or a full disk left behind the last whole line.
                file.truncate(self._size)
                file.seek(self._size)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise JournalError(f"{self._path}: cannot be written ({error.strerror})") from None
        self._entries.append(entry)
        self._size += len(line)


def _read_whole_lines(path: Path) -> list[bytes]:
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise JournalError(f"{path}: cannot be read ({error.strerror})") from None
    return lines[:-1] if lines and not lines[-1].endswith(b"\n") else lines


def _parse(path: Path, number: int, line: bytes) -> Intent | Done:
    try:
        return _ENTRY.validate_json(line)
    except (ValidationError, FedveilError):
        raise JournalError(
            f"{path}, line {number}: is not a journal entry; the spent budget is unknown, so the "
            "run cannot go on"
        ) from None
