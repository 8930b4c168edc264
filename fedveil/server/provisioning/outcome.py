"""What a run of `fedveil provision` did, for people to be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["Change", "Outcome"]


@dataclass(frozen=True)
class Change:
    """What happened to one party.

    Parameters
    ----------
    party : str
        Its name; ``ca`` is the authority.
    what : {"made", "changed", "revoked"}
        A new kit, a kit with new files, or one that was moved aside.
    folder : Path
        Where the kit is, or, of one that was handed over, the new files for it.
    files, removed : tuple of str
        Paths in the kit that are new, and those to remove.
    """

    party: str
    what: Literal["made", "changed", "revoked"]
    folder: Path
    files: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What a run of `provision` did.

    Parameters
    ----------
    authority : Path
        Where the authority's keys are.
    serial : int
        Version of the roster.
    changes : tuple of Change
        Parties in the order in which they were written.
    notes : tuple of str
        What to see to, one line each.
    """

    authority: Path
    serial: int
    changes: tuple[Change, ...]
    notes: tuple[str, ...]
