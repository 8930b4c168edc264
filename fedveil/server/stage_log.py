"""How long the stages of a run's rounds took, and who was left out: figures, no part of a commit.

What a crash loses of them is lost: nothing is decided by them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fedveil.strategies.failures import FailureKind, kind_of
from fedveil.strategies.stage_clock import Stage

__all__ = ["StageRecord", "add_stages", "read_stages"]

_NAME = "stages.jsonl"


class StageRecord(BaseModel):
    """One attempt at a round.

    Parameters
    ----------
    round, attempt : int
        Which round, and which try at it.
    is_committed : bool
        Whether it came to a model.
    seconds : dict of Stage to float
        What each stage took.
    left_out : dict of FailureKind to int
        Clients that were asked and whose updates are not in it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    round: int
    attempt: int
    is_committed: bool
    seconds: dict[Stage, float]
    left_out: dict[FailureKind, int]


def add_stages(
    folder: Path,
    turn: tuple[int, int],
    seconds: Mapping[Stage, float],
    failures: Iterable[str],
    *,
    is_committed: bool,
) -> None:
    """Add an attempt to a run folder's figures.

    Parameters
    ----------
    folder : Path
        The run folder.
    turn : tuple of int
        Round and attempt.
    seconds : Mapping of Stage to float
        What each stage took.
    failures : iterable of str
        Why clients were left out, one reason each.
    is_committed : bool
        Whether it came to a model.
    """
    record = StageRecord(
        round=turn[0],
        attempt=turn[1],
        is_committed=is_committed,
        seconds={stage: round(value, 6) for stage, value in seconds.items()},
        left_out=dict(Counter(map(kind_of, failures))),
    )
    line = record.model_dump_json().encode() + b"\n"
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(folder / _NAME, flags, 0o600)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def read_stages(folder: Path) -> list[StageRecord]:
    """Return the attempts of a run so far; what is no line of ours is left out."""
    try:
        lines = (folder / _NAME).read_bytes().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(StageRecord.model_validate_json(line))
        except ValidationError:
            continue
    return found
