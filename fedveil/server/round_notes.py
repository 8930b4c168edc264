"""What is noted of rounds beside what is committed: lines of the audit log, times of the stages."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedveil.server.joining import Roster
from fedveil.server.records import RoundRecord
from fedveil.server.run_trail import RunTrail
from fedveil.server.stage_log import add_stages
from fedveil.strategies.round_loop import RoundOutcome
from fedveil.strategies.secure_rounds import SecureRounds
from fedveil.strategies.stage_clock import StageClock

__all__ = ["RoundNotes"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoundNotes:
    """Notes of one run.

    Parameters
    ----------
    trail : RunTrail
        The audit log.
    folder : Path
        The run folder, for the times.
    roster : Roster
        Who serves the run.
    secure : SecureRounds, optional
        Knows under which names clients take part.
    clock : StageClock
        Knows what the stages took.
    """

    trail: RunTrail
    folder: Path
    roster: Roster
    secure: SecureRounds | None
    clock: StageClock = field(default_factory=StageClock)

    def committed(self, outcome: RoundOutcome, record: RoundRecord) -> None:
        """Note a round that was committed.

        Raises
        ------
        AuditError
            If the audit log cannot be written.
        """
        self._times(outcome.round, outcome.attempt, outcome.failures, is_committed=True)
        self.trail.round_done(record, outcome.clients, outcome.failures, self._name_of)

    def failed(self, round_: int, attempt: int, why: str) -> None:
        """Note an attempt that came to nothing.

        Raises
        ------
        AuditError
            If the audit log cannot be written.
        """
        client_of = {node: client for client, node in self.roster.known().items()}
        found = {} if self.secure is None else self.secure.failures
        failures = {client_of.get(node, f"node {node}"): why for node, why in found.items()}
        self._times(round_, attempt, failures, is_committed=False)
        self.trail.attempt_failed(round_, attempt, failures, self._name_of, why)

    def _times(
        self, round_: int, attempt: int, failures: Mapping[str, str], *, is_committed: bool
    ) -> None:
        taken = self.clock.take()
        try:
            add_stages(
                self.folder,
                (round_, attempt),
                taken,
                failures.values(),
                is_committed=is_committed,
            )
        except OSError as error:
            # Figures alone: the run goes on without.
            _log.warning("the times of round %d cannot be written (%s)", round_, error.strerror)

    def _name_of(self, client: str) -> str:
        node = self.roster.known().get(client)
        return "" if self.secure is None or node is None else self.secure.name_of(node)
