"""The data owner's guard: holds each request against the policy, and charges the ledger first."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from flwr.app import Context

from fedveil.client.credentials import Credentials
from fedveil.client.policy_file import PolicyFileError, read_policy, request_of
from fedveil.config import Config
from fedveil.errors import FedveilError
from fedveil.home import default_ledger_file, default_policy_file, marks_dir
from fedveil.privacy.ledger import Ledger, Snapshot
from fedveil.privacy.ledger_entries import LedgerError, OverspendError, Purpose
from fedveil.privacy.policy import DataSetPolicy, Policy
from fedveil.privacy.policy_check import PolicyRefusedError, Reason, Refusal, Request, refusals
from fedveil.rosters import show_public_key

__all__ = ["Guard", "GuardOf", "guard_of_node"]

_log = logging.getLogger(__name__)


class Guard:
    """Stands between the server's requests and the records.

    Nothing that it is asked touches a record; what it refuses is a `PolicyRefusedError`, whose
    words may leave the client. The owner's figures go to this client's own log.

    Parameters
    ----------
    policy : Policy
        What the owner allows.
    ledger : Ledger
        What was released until now.
    run : str
        Which run the requests are of, as this client knows it.
    """

    def __init__(self, policy: Policy, ledger: Ledger, run: str) -> None:
        self.policy = policy
        self._ledger = ledger
        self._run = run

    def admit(self, config: Config) -> None:
        """Refuse a run that the policy does not allow, or for which nothing is left.

        Raises
        ------
        PolicyRefusedError
            Why.
        """
        with self._in_public_words():
            snapshot = self._ledger.read()
            request = request_of(config)
            name, data = self._allowed(request, snapshot)
            if data.budget is None:
                return
            charge = request.charge("train", name, self._run, 1, 1)
            if charge is None:
                # Noise or model are known only when it is known who takes part.
                data.budget.check_left(snapshot.entries, name, self._run)
            else:
                data.budget.check(snapshot.entries, charge)

    def charge(
        self,
        config: Config,
        purpose: Purpose,
        round_: int,
        attempt: int,
        *,
        dimension: int | None = None,
        clip_norm: float | None = None,
    ) -> None:
        """Write in the ledger what a message is about to release, or refuse it.

        When this returns, the charge is on the disk. It counts whatever becomes of the message; the
        same message again is another charge, since its noise is drawn anew.

        Parameters
        ----------
        config : Config
            The run's settings.
        purpose : {"train", "evaluate"}
            What is asked for.
        round_, attempt : int
            As the server says.
        dimension : int, optional
            Of the model that came with a message to train; see `dimension_of`.
        clip_norm : float, optional
            Of this round, where it adapts.

        Raises
        ------
        PolicyRefusedError
            Why.
        """
        with self._in_public_words():
            request = request_of(config, dimension, clip_norm)
            name, data = self._allowed(request, self._ledger.read())
            charge = request.charge(purpose, name, self._run, round_, attempt)
            if charge is None:
                raise self._refused(
                    Refusal(
                        Reason.NOISE,
                        "the request leaves dp.noise_multiplier open",
                        "the request leaves dp.noise_multiplier open",
                    )
                )
            entry = self._ledger.charge(charge, data.budget)
        _log.info(
            "entry %d of the ledger: data set %s, %s of round %d of run %s",
            *(entry.number, name, purpose, round_, self._run),
        )

    def strengthen(self, own: Credentials) -> Credentials:
        """Return a client's credentials with the policy's least cohort and roster in force.

        Raises
        ------
        PolicyRefusedError
            If the client's roster names somebody whom the policy does not.
        """
        allowed = self.policy.roster
        for name, key in own.roster.keys.items():
            if allowed is None or name == own.identity.name:
                continue
            if allowed.get(name) != show_public_key(key):
                raise self._refused(
                    Refusal(
                        Reason.ROSTER,
                        "this client's roster is not the one that its policy names",
                        f"{name} stands in the roster, and not with that key in the policy",
                    )
                )
        least = max(own.floors.min_clients, self.policy.min_cohort)
        return replace(own, floors=replace(own.floors, min_clients=least))

    def _allowed(self, request: Request, snapshot: Snapshot) -> tuple[str, DataSetPolicy]:
        for refusal in refusals(self.policy, request, snapshot.now().date()):
            raise self._refused(refusal)
        named = self.policy.data_set_of(request.task)
        assert named is not None  # noqa: S101  # else it would have been refused
        return named

    @contextmanager
    def _in_public_words(self) -> Iterator[None]:
        """Let no figure and no path of the owner leave in an error of the ledger."""
        try:
            yield
        except OverspendError as error:
            words = "this client's budget does not bear it"
            raise self._refused(Refusal(Reason.BUDGET, words, str(error))) from None
        except LedgerError as error:
            raise _unusable(Reason.LEDGER, error) from None

    def _refused(self, refusal: Refusal) -> PolicyRefusedError:
        _log.warning("refused (%s): %s", refusal.reason, refusal.figures)
        return PolicyRefusedError(refusal, tell_figures=self.policy.tell_figures)


GuardOf = Callable[[Context], Guard | None]


def guard_of_node(context: Context) -> Guard | None:
    """Return the guard of a deployed client; None where it has neither policy nor ledger.

    The node's configuration may name ``policy`` and ``ledger``; otherwise they lie in
    ``$FEDVEIL_HOME``. The policy is read anew for each message.

    Raises
    ------
    PolicyRefusedError
        If the policy cannot be used, or there is a ledger and no policy: a policy that got lost
        must not open the door.
    """
    named = context.node_config
    ledger_file = Path(str(named.get("ledger") or default_ledger_file()))
    try:
        policy_file = _policy_file(context, ledger_file)
        policy = None if policy_file is None else read_policy(policy_file)
    except PolicyFileError as error:
        raise _unusable(Reason.POLICY, error) from None
    if policy is None:
        return None
    return Guard(policy, Ledger(ledger_file, marks_dir()), str(context.run_id))


def _policy_file(context: Context, ledger_file: Path) -> Path | None:
    named = context.node_config.get("policy")
    if named:
        return Path(str(named))
    path = default_policy_file()
    if _is_there(path):
        return path
    if context.node_config.get("ledger") or _is_there(ledger_file):
        raise PolicyFileError(
            f"there is a ledger at {ledger_file} and no policy at {path}; put the policy back, or "
            'name it: --node-config policy="FILE"'
        )
    return None


def _is_there(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _unusable(reason: Reason, error: FedveilError) -> PolicyRefusedError:
    _log.error("refused (%s): %s", reason, error)
    words = f"this client's {'policy' if reason is Reason.POLICY else 'ledger'} cannot be used"
    # Never the error's own words, whatever the policy says: they name files of this machine.
    told = f"{words}; its own log says why"
    return PolicyRefusedError(Refusal(reason, told, str(error)))
