"""`runner.toml`: what a data owner lets the messages of a federation run, and how much of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedveil.client.runner.limits import TaskLimits, machine_memory
from fedveil.errors import FedveilError
from fedveil.settings import read_toml

__all__ = ["RUNNER", "RunnerFile", "RunnerFileError", "read_runner_file"]

RUNNER = "runner.toml"
_MIB = 2**20


class RunnerFileError(FedveilError):
    """The file says something that the runner does not understand."""


class RunnerFile(BaseModel):
    """What stands in the file; all of it may be left out.

    Parameters
    ----------
    app : str
        The installed app that answers, as ``package.module:attribute``.
    memory_mib : int, optional
        MiB of private memory that a message may take, libraries included; by default as much as
        the machine has.
    seconds : float
        How long a message may take.
    gpu : str, optional
        Index or id of the GPU that messages run on, several as ``0,1``, or ``none``; by default
        the first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    app: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")] = "fedveil.client.app:app"
    memory_mib: Annotated[int, Field(ge=1)] | None = None
    seconds: Annotated[float, Field(gt=0)] = 3600.0
    gpu: str | None = None

    def limits(self) -> TaskLimits:
        """Return what a message may take.

        Raises
        ------
        LimitError
            If that is less than any message takes.
        """
        memory = machine_memory() if self.memory_mib is None else self.memory_mib * _MIB
        return TaskLimits(memory, self.seconds)


def read_runner_file(kit: Path) -> RunnerFile:
    """Read a kit's file; what it says by default where there is none.

    Raises
    ------
    RunnerFileError
        If it is there and cannot be used; the message names the key.
    """
    path = kit / RUNNER
    if not path.exists():
        return RunnerFile()
    try:
        return RunnerFile.model_validate(read_toml(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        known = ", ".join(RunnerFile.model_fields)
        raise RunnerFileError(f"{path}: {where}: {first['msg']}; it may set {known}") from None
