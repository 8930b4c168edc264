"""Simulated data owners: one policy for all, and a ledger for each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedveil.client.guard import Guard
from fedveil.client.policy_file import read_policy
from fedveil.config import Config
from fedveil.errors import FedveilError
from fedveil.privacy.ledger import Ledger
from fedveil.privacy.policy import Policy
from fedveil.server.observer import Observer
from fedveil.server.records import RoundRecord
from fedveil.server.run_info import replace_text

__all__ = ["Guards"]

_POLICY = "policy.toml"
_LEDGERS = "ledgers"


@dataclass(frozen=True)
class Guards:
    """What the simulated clients of a run allow.

    The run folder remembers it: a copy of the policy, and its ledgers or a link to them.

    Parameters
    ----------
    out : Path
        The run folder.
    policy : Policy, optional
        The policy of all; None where there is none.
    text : str
        The same as it was read.
    ledgers : Path
        Folder of the ledgers, ``client-N.db``.
    """

    out: Path
    policy: Policy | None
    text: str
    ledgers: Path

    @classmethod
    def of(cls, out: Path, policy: Path | None, ledgers: Path | None, *, resume: bool) -> Guards:
        """Read the policy that is named, or the one that a resumed run remembers.

        Raises
        ------
        FedveilError
            If it cannot be read, or ledgers are named without a policy.
        """
        if resume and policy is None and (out / _POLICY).exists():
            policy = out / _POLICY
        if policy is None:
            if ledgers is not None:
                raise FedveilError("ledgers are kept under a policy: name one with --policy")
            return cls(out, None, "", out / _LEDGERS)
        found = read_policy(policy)
        folder = ledgers or out / _LEDGERS
        return cls(out, found, policy.read_text(encoding="utf-8"), folder.resolve())

    def guard(self, client: str) -> Guard | None:
        """Return the guard of a client."""
        if self.policy is None:
            return None
        # Nobody in one process could be kept from both, so that they may lie together.
        ledger = Ledger(self.ledgers / f"{client}.db", self.ledgers / "heads")
        # The name of a run is drawn only when it has started, and its number is always the same.
        return Guard(self.policy, ledger, str(self.out.resolve()))

    def keep(self, observer: Observer) -> Observer:
        """Return an observer that writes into the run folder what it is to remember."""
        return observer if self.policy is None else _Remembering(self, observer)


@dataclass(frozen=True)
class _Remembering:
    """Tells another observer all that it hears."""

    guards: Guards
    observer: Observer

    def started(self, config: Config, run: str, clients: int, noise: float | None) -> None:
        # Not before: until the run has started its folder must be empty.
        replace_text(self.guards.out / _POLICY, self.guards.text)
        place = self.guards.out / _LEDGERS
        if place.resolve() != self.guards.ledgers:
            place.symlink_to(self.guards.ledgers)
        self.observer.started(config, run, clients, noise)

    def reply(self, round_: int, replies: int, cohort: int) -> None:
        self.observer.reply(round_, replies, cohort)

    def round_done(self, record: RoundRecord, rounds: int) -> None:
        self.observer.round_done(record, rounds)

    def warning(self, text: str) -> None:
        self.observer.warning(text)
