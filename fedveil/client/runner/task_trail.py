"""What a client's audit log says of the messages that its runner has answered."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fedveil.audit_log.errors import AuditError
from fedveil.audit_log.trail import AuditTrail
from fedveil.client.runner.channel import Taken
from fedveil.client.runner.outcomes import Outcome
from fedveil.errors import FedveilError

__all__ = ["TaskTrail", "node_told"]

_log = logging.getLogger(__name__)


@contextmanager
def node_told(
    trail: AuditTrail, superlink: str, app: str, files: Mapping[str, Path]
) -> Iterator[None]:
    """Write down that a node starts, with the hashes of what it trusts, and how the block ended.

    Parameters
    ----------
    trail : AuditTrail
        The client's log.
    superlink : str
        ``HOST:PORT`` that the node dials.
    app : str
        The installed app that answers.
    files : Mapping of str to Path
        By what they are: the authority's certificate, roster, policy. One that is not there is
        left out.

    Raises
    ------
    AuditError
        If it cannot be written; the node does not start then.
    """
    hashes = {
        f"{name}_sha256": hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in files.items()
        if path.is_file()
    }
    trail.write("node-start", superlink=superlink, component=app, **hashes)
    try:
        yield
    except FedveilError as error:
        trail.write("node-stop", outcome="failed", detail=str(error))
        raise
    trail.write("node-stop", outcome="ok")


class TaskTrail:
    """Writes each message down twice: before anything of it is run, and when it has ended.

    Parameters
    ----------
    trail : AuditTrail
        The client's log.
    app : str
        The installed app that answers, whatever the server's bundle names.
    """

    def __init__(self, trail: AuditTrail, app: str) -> None:
        self._trail = trail
        self._app = app

    def began(self, taken: Taken) -> None:
        """Write that a message is about to be run.

        Raises
        ------
        AuditError
            If it cannot be written; the message must not be run then.
        """
        self._trail.write(
            "task",
            run=taken.run,
            message=taken.what,
            component=self._app,
            bundle_sha256=taken.bundle,
        )

    def ended(self, taken: Taken | None, outcome: Outcome, why: str, seconds: float) -> None:
        """Write how it ended; where that cannot be written, the next message is not run."""
        run, what = ("", "") if taken is None else (taken.run, taken.what)
        try:
            self._trail.write(
                "task-end",
                run=run,
                message=what,
                outcome=outcome,
                detail=why,
                milliseconds=round(1000.0 * seconds),
            )
        except AuditError as error:
            _log.error("%s", error)
