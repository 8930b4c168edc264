"""A run is submitted, and who did so is written into the coordinator's audit log first."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fedveil.audit_log.trail import AuditTrail
from fedveil.config import Config
from fedveil.server.flower_cli import FlowerCli, FlowerCliError
from fedveil.server.provisioning import layout
from fedveil.server.run_trail import file_hash
from fedveil.server.run_watch import ListedRun, submit

__all__ = ["Submission"]


class Submission:
    """One run of a coordinator's kit.

    Parameters
    ----------
    kit : Path
        The kit.
    connection : str
        The SuperLink's name in Flower's configuration.
    folder : Path
        The run folder.
    is_resumed : bool
        Whether a run that was begun before goes on.
    """

    def __init__(self, kit: Path, connection: str, folder: Path, *, is_resumed: bool) -> None:
        self._kit = kit
        self._connection = connection
        self._folder = folder
        self._is_resumed = is_resumed
        self._trail = AuditTrail(kit)

    def submit(self, flower: FlowerCli, app: Path, told: Path, config: Config) -> str:
        """Submit the run, and return its number at the SuperLink.

        Parameters
        ----------
        flower : FlowerCli
            Asks the SuperLink.
        app : Path
            Directory of the app.
        told : Path
            What the run is told beside the app's own settings.
        config : Config
            The settings that it is submitted with.

        Raises
        ------
        AuditError
            If it cannot be written down; nothing was submitted then.
        FlowerCliError
            If the SuperLink does not take it.
        """
        self._write(
            "submit",
            what="resume" if self._is_resumed else "new run",
            task=config.task.name,
            submitted_sha256=hashlib.sha256(config.to_toml().encode()).hexdigest(),
            roster_sha256=file_hash(self._kit / layout.ROSTER),
        )
        try:
            number = submit(flower, app, self._connection, told)
        except FlowerCliError as error:
            self._write("not-submitted", detail=str(error))
            raise
        self._write("submitted", run=number)
        return number

    def left(self, number: str) -> None:
        """Write that who submitted it looks away; the run goes on."""
        self._write("left", run=number)

    def ended(self, number: str, run: ListedRun) -> None:
        """Write how the SuperLink says that the run ended."""
        why = "" if run.details == "N/A" else run.details
        self._write("ended", run=number, outcome=run.status, detail=why)

    def _write(self, event: str, **fields: str | int) -> None:
        self._trail.write(event, folder=str(self._folder), **fields)
