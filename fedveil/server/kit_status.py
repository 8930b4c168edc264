"""What a coordinator's or a client's files say of its runs, for `fedveil status`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedveil.audit_log.trail import Event, read_events, trail
from fedveil.server.run_info import SETTINGS_NAME
from fedveil.server.run_watch import RunLostError, committed_rounds
from fedveil.settings import ConfigError, read_toml

__all__ = [
    "FolderStatus",
    "RefusalSeen",
    "events_of",
    "folder_status",
    "folders_by_run",
    "refusals",
]

_BAD_ENDS = frozenset({"refused", "error", "crashed", "out-of-memory", "out-of-time", "failed"})


@dataclass(frozen=True)
class FolderStatus:
    """How far the run of a folder is.

    Parameters
    ----------
    folder : str
        Its name.
    round, rounds : int
        The last that is committed, and how many there are to be; the latter 0 if not known.
    clients, left_out : int
        Of that round.
    epsilon : float or None
        Largest of any client so far; None where nothing is claimed, or before the first round.
    trouble : str
        Why that is not known; empty where it is.
    """

    folder: str
    round: int = 0
    rounds: int = 0
    clients: int = 0
    left_out: int = 0
    epsilon: float | None = None
    trouble: str = ""


@dataclass(frozen=True)
class RefusalSeen:
    """Somebody who was refused or dropped, or a message that was.

    Parameters
    ----------
    time : str
        When.
    run : str
        Number of the run.
    who : str
        Which client, node or message.
    kind, why : str
        Of what kind, and in words.
    """

    time: str
    run: str
    who: str
    kind: str
    why: str


def events_of(kit: Path) -> list[Event]:
    """Return the events of a kit's audit log, unverified.

    Raises
    ------
    AuditError
        If it cannot be read.
    """
    return read_events(trail(kit)[0])[0]


def folder_status(path: Path) -> FolderStatus:
    """Return how far the run of a folder is; without any key."""
    try:
        records = committed_rounds(path)
        federation = read_toml(path / SETTINGS_NAME).get("federation", {})
    except (RunLostError, ConfigError) as error:
        return FolderStatus(path.name, trouble=str(error))
    rounds = federation.get("rounds", 0) if isinstance(federation, dict) else 0
    last = records[-1] if records else None
    return FolderStatus(
        folder=path.name,
        round=last.round if last else 0,
        rounds=rounds if isinstance(rounds, int) else 0,
        clients=last.clients if last else 0,
        left_out=last.failed if last else 0,
        epsilon=last.epsilon if last else None,
    )


def folders_by_run(events: Iterable[Event]) -> dict[str, str]:
    """Return the folder of each run by its number at the SuperLink."""
    return {
        str(event["run"]): str(event["folder"])
        for event in events
        if event.get("event") in ("begin", "resume") and "run" in event and "folder" in event
    }


def refusals(events: Sequence[Event], most: int) -> list[RefusalSeen]:
    """Return who was refused or dropped last, at most so many, the newest last."""
    seen = [event for event in events if _is_refusal(event)]
    return [_refusal(event) for event in seen[-most:]]


def _is_refusal(event: Event) -> bool:
    if event.get("event") in ("task-end", "node-stop"):
        return event.get("outcome") in _BAD_ENDS
    return event.get("event") in ("refuse", "drop", "not-submitted")


def _refusal(event: Event) -> RefusalSeen:
    def told(*names: str) -> str:
        return next((str(event[name]) for name in names if name in event), "")

    node = told("node")
    return RefusalSeen(
        time=told("time"),
        run=told("run"),
        who=told("client", "message") or (f"node {node}" if node else told("event")),
        kind=told("kind", "outcome"),
        why=told("detail"),
    )
