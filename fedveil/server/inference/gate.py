"""Lets callers in, counts what they ask for, and has it written down."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from fedveil.server.inference.audit_log import AuditEvent
from fedveil.server.inference.callers import Caller, Peer, Protocol
from fedveil.server.inference.errors import (
    ForbiddenError,
    OverloadedError,
    RequestError,
    UnauthenticatedError,
)
from fedveil.server.inference.metrics import Metrics
from fedveil.server.inference.policy import Policy
from fedveil.server.inference.query_budget import QueryBudget
from fedveil.server.inference.tokens import Scope, TokenFile

__all__ = ["Gate"]

Result = TypeVar("Result")


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
        self._waiter = ThreadPoolExecutor(1, thread_name_prefix="fedveil-budget")
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
        self, caller: Caller, rows: int, size: int, go: Callable[[], Future[Result]]
    ) -> Future[Result]:
        """Count rows that a caller asks for, then go on; no event loop waits for a disk meanwhile.

        What `go` raises is given back: those rows never came to the model.

        Parameters
        ----------
        caller : Caller
            Who asks.
        rows, size : int
            For how many rows, and their bytes.
        go : callable
            Sends them to the model.

        Raises
        ------
        RequestError
            As `Rate.take_rows`, `QueryBudget.take` and `go` do; if a disk is waited for, the
            future holds the last two.
        OverloadedError
            If too many bytes wait for the disk already.
        """
        self._rate.take_rows(caller, rows)
        budget = self._budget
        if budget is None:
            return go()
        if budget.holds(caller, rows):
            return _charged(budget, caller, rows, go)
        with self._waiting:
            if self._waiting_bytes and self._waiting_bytes + size > self._most_bytes:
                raise OverloadedError("too many requests wait to be counted; try again later")
            self._waiting_bytes += size
        later: Future[Result] = Future()

        def charge_later() -> None:
            try:
                _charge_later(budget, caller, rows, go, later)
            finally:
                with self._waiting:
                    self._waiting_bytes -= size

        self._waiter.submit(charge_later)
        return later

    @property
    def has_budget(self) -> bool:
        """Whether callers have budgets, whose file `charge` may wait for."""
        return self._budget is not None

    def charge_rate(self, caller: Caller, rows: int) -> None:
        """Count rows where there is no budget; see `charge`."""
        self._rate.take_rows(caller, rows)

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

    def _turn_away(self, caller: Caller, protocol: Protocol, scope: Scope, outcome: str) -> None:
        self._metrics.turned_away(outcome)
        if self._audit is not None:
            self._audit.refuse(
                AuditEvent("refuse", str(caller), protocol, outcome=outcome, detail=scope)
            )


def _charged(
    budget: QueryBudget, caller: Caller, rows: int, go: Callable[[], Future[Result]]
) -> Future[Result]:
    receipt = budget.take(caller, rows)
    try:
        return go()
    except RequestError:
        budget.give_back(receipt)
        raise


def _charge_later(
    budget: QueryBudget,
    caller: Caller,
    rows: int,
    go: Callable[[], Future[Result]],
    later: Future[Result],
) -> None:
    if not later.set_running_or_notify_cancel():
        return
    try:
        sooner = _charged(budget, caller, rows, go)
    except BaseException as error:  # noqa: BLE001  # whoever waits must be told, whatever it is
        later.set_exception(error)
        return

    def copy(done: Future[Result]) -> None:
        error = done.exception()
        if error is None:
            later.set_result(done.result())
        else:
            later.set_exception(error)

    sooner.add_done_callback(copy)
