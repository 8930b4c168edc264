"""Lets callers in, counts what they ask for, and has it written down."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from fedveil.server.inference.audit_log import AuditEvent
from fedveil.server.inference.callers import Caller, Peer, Protocol
from fedveil.server.inference.errors import (
    DeadlineError,
    ForbiddenError,
    OverloadedError,
    RequestError,
    UnauthenticatedError,
    UnavailableError,
)
from fedveil.server.inference.metrics import Metrics
from fedveil.server.inference.oip import Array
from fedveil.server.inference.policy import Policy
from fedveil.server.inference.query_budget import QueryBudget
from fedveil.server.inference.tokens import Scope, TokenFile

__all__ = ["Gate"]

# Who wait for the file of budgets together wait for one write of it.
_WAITERS = 16

_log = logging.getLogger(__name__)


class Gate:
    """Stands before the model.

    Parameters
    ----------
    tokens : TokenFile or None
        Who may ask; None lets in whoever reaches the port.
    policy : Policy
        How fast and how much they may ask, and where it is written down.
    metrics : Metrics
        Counts those who are turned away.
    most_bytes : int
        What may wait for the file of budgets.
    """

    def __init__(
        self, tokens: TokenFile | None, policy: Policy, metrics: Metrics, most_bytes: int
    ) -> None:
        self._tokens = tokens
        self._rate = policy.rate
        self._budget = policy.budget
        self._audit = policy.audit
        self._metrics = metrics
        self._waiter = ThreadPoolExecutor(_WAITERS, thread_name_prefix="fedveil-budget")
        self._most_bytes = most_bytes
        self._waiting_bytes = 0
        self._waiting = threading.Lock()

    def admit(self, authorization: str | None, scope: Scope, peer: Peer) -> Caller:
        """Let a caller pass and return who it is.

        Without tokens there are no administrators: a web page in a browser on this machine could
        pose as one.

        Raises
        ------
        UnauthenticatedError
            If a token is needed, and none that is known was sent.
        ForbiddenError
            If the token is not good for this.
        RateError
            If the caller asks too fast; who shows no good token is counted by its connection.
        UnavailableError
            If it cannot be written down.
        """
        caller = peer.caller
        try:
            if self._tokens is None:
                self._rate.take_request(caller)
                if scope == "admin":
                    raise ForbiddenError("this takes a token; start the service with --tokens FILE")
            else:
                try:
                    token = self._tokens.find(authorization)
                except UnauthenticatedError:
                    self._rate.take_request(caller)
                    raise
                caller = Caller("token", token.name)
                self._rate.take_request(caller)
                token.check(scope)
            if self._audit is not None and scope != "metadata":
                self._audit.check()
        except RequestError as error:
            self._turn_away(caller, peer.protocol, scope, error.outcome)
            raise
        return caller

    def charge(
        self,
        caller: Caller,
        rows: Array,
        deadline: float,
        go: Callable[[], None],
        failed: Callable[[RequestError], None],
    ) -> None:
        """Count rows that a caller asks for, then go on; no event loop waits for a disk meanwhile.

        What `go` raises is given back: those rows never came to the model. So are rows that are
        late before that.

        Parameters
        ----------
        caller : Caller
            Who asks.
        rows : ndarray, shape (n, ...)
            For what.
        deadline : float
            When the answer is not waited for any more, as `time.monotonic` has it.
        go : callable
            Sends them to the model.
        failed : callable
            Told by another thread what would be raised, if a disk is waited for.

        Raises
        ------
        RequestError
            As `Rate.take_rows`, `QueryBudget.take` and `go` do.
        DeadlineError
            If a disk was waited for until the deadline.
        OverloadedError
            If too many bytes wait for the disk already.
        """
        count = len(rows)
        self._rate.take_rows(caller, count)
        budget = self._budget
        if budget is None:
            go()
            return
        charge = partial(_charge, budget, caller, count, deadline, go)
        if budget.holds(caller, count):
            charge()
            return
        size = rows.nbytes
        with self._waiting:
            if self._waiting_bytes and self._waiting_bytes + size > self._most_bytes:
                raise OverloadedError("too many requests wait to be counted; try again later")
            self._waiting_bytes += size
        self._waiter.submit(self._charge_later, charge, size, failed)

    def answered(
        self, caller: Caller, protocol: Protocol, version: str, rows: int, outcome: str
    ) -> None:
        """Write down how a request to the model ended."""
        if self._audit is None:
            return
        if outcome == "ok":
            self._audit.record(AuditEvent("infer", str(caller), protocol, version, rows, outcome))
        else:
            self._audit.refuse(AuditEvent("infer", str(caller), protocol, outcome=outcome))

    def did(self, event: AuditEvent) -> None:
        """Write down what the service or an administrator did."""
        if self._audit is not None:
            self._audit.record(event)

    def close(self) -> None:
        """Write down what is not yet, and end."""
        self._waiter.shutdown()
        if self._budget is not None:
            self._budget.close()
        if self._audit is not None:
            self._audit.close(AuditEvent("stop"))

    def _charge_later(
        self, charge: Callable[[], None], size: int, failed: Callable[[RequestError], None]
    ) -> None:
        try:
            charge()
        except RequestError as error:
            failed(error)
        except Exception:  # noqa: BLE001  # whoever waits must be told, whatever it is
            _log.exception("a request could not be counted")
            failed(UnavailableError("the service has a fault; its log says more"))
        finally:
            with self._waiting:
                self._waiting_bytes -= size

    def _turn_away(self, caller: Caller, protocol: Protocol, scope: Scope, outcome: str) -> None:
        self._metrics.turned_away(outcome)
        if self._audit is not None:
            self._audit.refuse(
                AuditEvent("refuse", str(caller), protocol, outcome=outcome, detail=scope)
            )


def _charge(
    budget: QueryBudget, caller: Caller, rows: int, deadline: float, go: Callable[[], None]
) -> None:
    _check_time(deadline)
    receipt = budget.take(caller, rows)
    try:
        _check_time(deadline)
        go()
    except RequestError:
        budget.give_back(receipt)
        raise


def _check_time(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise DeadlineError("the deadline passed while the rows were counted")
