"""What a run writes into its coordinator's audit log: who took part, who did not, how it ended."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedveil.audit_log.errors import AuditError
from fedveil.audit_log.trail import AuditTrail, in_parts
from fedveil.errors import FedveilError
from fedveil.server.records import RoundRecord
from fedveil.strategies.failures import Failure, kind_of

__all__ = ["RunTrail", "file_hash"]


class RunTrail:
    """Tells of one run; every line names the run's number at the SuperLink and its folder.

    Parameters
    ----------
    trail : AuditTrail, optional
        Where to; None for a run of a simulation, of which nothing is written down.
    number : str
        The run's number at the SuperLink.
    folder : Path
        Its run folder.
    """

    def __init__(self, trail: AuditTrail | None, number: str, folder: Path) -> None:
        self._trail = trail
        self._number = number
        self._folder = folder

    @contextmanager
    def told(self) -> Iterator[None]:
        """Write down that the run failed, where the block does."""
        try:
            yield
        except FedveilError as error:
            self._ended_badly(str(error))
            raise
        except BaseException as error:
            self._ended_badly(type(error).__name__)
            raise

    def began(self, config_sha256: str, roster: Path | None, *, is_resumed: bool) -> None:
        """Write that the run begins, or goes on."""
        self._write(
            "resume" if is_resumed else "begin",
            config_sha256=config_sha256,
            roster_sha256="" if roster is None else file_hash(roster),
        )

    def joined(self, client: str, node: int) -> None:
        """Write that a node serves the run as this client."""
        self._write("join", client=client, node=str(node))

    def refused(self, node: int, reason: Failure) -> None:
        """Write that a node asked to join does not take part."""
        self._write("refuse", node=str(node), kind=reason.kind, detail=reason)

    def round_done(
        self,
        record: RoundRecord,
        clients: Sequence[str],
        failures: Mapping[str, str],
        name_of: Callable[[str], str],
    ) -> None:
        """Write that a round is committed, with whose updates, and whose not.

        Parameters
        ----------
        record : RoundRecord
            Its figures.
        clients : sequence of str
            Whose updates are in the model.
        failures : Mapping of str to str
            Why those of others are not.
        name_of : callable
            Returns a client's own name, or an empty text.
        """
        self._dropped(record.round, record.attempt, failures, name_of)
        parts = list(in_parts(_told(client, name_of) for client in clients))
        for part in parts[:-1]:
            self._write("clients", round=record.round, attempt=record.attempt, clients=part)
        self._write(
            "round",
            round=record.round,
            attempt=record.attempt,
            clients=parts[-1] if parts else "",
            dropped=len(failures),
            epsilon="" if record.epsilon is None else f"{record.epsilon:.6g}",
        )

    def attempt_failed(
        self,
        round_: int,
        attempt: int,
        failures: Mapping[str, str],
        name_of: Callable[[str], str],
        why: str,
    ) -> None:
        """Write that an attempt at a round came to nothing."""
        self._dropped(round_, attempt, failures, name_of)
        self._write(
            "attempt-failed", round=round_, attempt=attempt, dropped=len(failures), detail=why
        )

    def ended(self, outcome: str) -> None:
        """Write how the run ended."""
        self._write("end", outcome=outcome)

    def _ended_badly(self, why: str) -> None:
        try:
            self._write("end", outcome="failed", detail=why)
        except AuditError:
            # Where that is what the run ended of, it cannot be written down.
            return

    def _dropped(
        self,
        round_: int,
        attempt: int,
        failures: Mapping[str, str],
        name_of: Callable[[str], str],
    ) -> None:
        for client, reason in failures.items():
            self._write(
                "drop",
                round=round_,
                attempt=attempt,
                client=_told(client, name_of),
                kind=kind_of(reason),
                detail=str(reason),
            )

    def _write(self, event: str, **fields: str | int) -> None:
        if self._trail is not None:
            named = {"run": self._number, "folder": str(self._folder)}
            self._trail.write(event, **named, **fields)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal characters; empty where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _told(client: str, name_of: Callable[[str], str]) -> str:
    name = name_of(client)
    return f"{client} ({name})" if name else client
