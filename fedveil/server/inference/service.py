"""The service behind both protocols: what is served, who may ask, and the way to the model."""

from __future__ import annotations

import logging
import time
from contextlib import AbstractContextManager
from functools import partial

from fedveil.server.inference.audit_log import AuditEvent
from fedveil.server.inference.batcher import Batcher, Done
from fedveil.server.inference.callers import Caller, Peer, Protocol
from fedveil.server.inference.devices import AS_TRAINED, Acceleration
from fedveil.server.inference.engine import Engine, ServedRound
from fedveil.server.inference.errors import (
    ForbiddenError,
    NotFoundError,
)
from fedveil.server.inference.gate import Gate
from fedveil.server.inference.metrics import Metrics
from fedveil.server.inference.model_holder import ModelHolder
from fedveil.server.inference.model_metadata import ModelMetadata, describe
from fedveil.server.inference.oip import Array, InferRequest, InferResponse, Limits
from fedveil.server.inference.policy import OPEN, PolicyOptions, open_policy
from fedveil.server.inference.round_statistics import Execution, RoundStatistics
from fedveil.server.inference.source import RunSource
from fedveil.server.inference.tokens import Scope, TokenFile
from fedveil.server.inference.watcher import Watcher

__all__ = ["SERVER_NAME", "InferenceService"]

SERVER_NAME = "fedveil"

_log = logging.getLogger(__name__)


class InferenceService:
    """Serves the rounds of one run.

    Parameters
    ----------
    source : RunSource
        The run, with one committed round at least.
    limits : Limits
        What requests may ask for.
    tokens : TokenFile or None
        Who may ask; None lets in whoever reaches the port.
    interval : float
        Seconds between two looks for a new round.
    acceleration : Acceleration
        What the model is run on, and how.
    policy : PolicyOptions
        How much callers may ask, what they are told, and where it is written down.
    is_alone : bool
        Whether no other process serves the run on the same port.

    Attributes
    ----------
    output : TensorSpec
        What answers hold: the model's output, in the form of the policy.

    Raises
    ------
    FedveilError
        If the newest round cannot be served, or the policy not be kept.
    """

    def __init__(
        self,
        source: RunSource,
        limits: Limits,
        tokens: TokenFile | None = None,
        interval: float = 1.0,
        acceleration: Acceleration = AS_TRAINED,
        policy: PolicyOptions = OPEN,
        *,
        is_alone: bool = True,
    ) -> None:
        self.limits = limits
        self._is_alone = is_alone
        self.metrics = Metrics()
        self.engine = Engine(source, acceleration, limits)
        self._source = source
        self.outputs = policy.outputs
        self.output = policy.outputs.spec(self.engine.output)
        first = self.engine.load_newest()
        self.holder = ModelHolder(first)
        self.name = source.config.task.name
        self.statistics = RoundStatistics(lambda: [kept.version for kept in self.holder.kept])
        opened = open_policy(policy, first.run, first.version)
        self.takes_tokens = tokens is not None
        self._gate = Gate(tokens, opened, self.metrics, limits.queue_bytes)
        self._batcher: Batcher[ServedRound] = Batcher(
            self._run, limits, self._executed, len(self.engine.devices)
        )
        self.watcher = Watcher(
            source.reader,
            self.engine,
            self.holder,
            interval,
            swapped=self._swapped,
            refused=self._refused,
        )
        self.metrics.read_when_asked(
            lambda: self._batcher.queued_rows, lambda: self.holder.current.round
        )
        self._is_draining = False

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return not self._is_draining

    def allow(self, authorization: str | None, scope: Scope, peer: Peer) -> Caller:
        """Let a caller pass and return who it is, or raise what `Gate.admit` raises."""
        return self._gate.admit(authorization, scope, peer)

    def roll_back(self, caller: Caller, protocol: Protocol) -> str:
        """Serve the round before again, until a newer one is committed; return its version.

        Raises
        ------
        NotFoundError
            If none is in memory.
        ForbiddenError
            If other processes serve the run too, which would not follow.
        """
        if not self._is_alone:
            raise ForbiddenError("several workers serve this run; start it with one to roll back")
        if not self.holder.roll_back():
            self._gate.did(AuditEvent("roll-back", str(caller), protocol, outcome="notfound"))
            raise NotFoundError("no round before this one is in memory")
        served = self.holder.current
        _log.warning("rolled back to round %d of run %s", served.round, served.run)
        self._gate.did(AuditEvent("roll-back", str(caller), protocol, served.version, outcome="ok"))
        return served.version

    def find(self, model: str, version: str = "") -> ServedRound:
        """Return a round that is in memory; the current one where no version is named.

        Raises
        ------
        NotFoundError
            If there is no such model, or the round is not in memory.
        """
        if model != self.name:
            raise NotFoundError(f"there is no model of this name here; it is {self.name}")
        kept = self.holder.kept
        if not version:
            return kept[0]
        for served in kept:
            if served.version == version:
                return served
        rounds = ", ".join(served.version for served in kept)
        raise NotFoundError(f"this version of {model} is not in memory; these are: {rounds}")

    def metadata(self, model: str, version: str = "") -> ModelMetadata:
        """Describe the model; errors are those of `find`."""
        served = self.find(model, version)
        versions = tuple(kept.version for kept in self.holder.kept)
        return describe(
            self._source, served, versions, self.engine.input, self.output, self.outputs
        )

    def ask(
        self, request: InferRequest, version: str, patience: float, caller: Caller, done: Done
    ) -> None:
        """Send a request to the model, and be told what comes of it.

        Parameters
        ----------
        request : InferRequest
            The request.
        version : str
            The round that is asked for; empty for the one that is current when it is computed.
        patience : float
            Seconds that the answer is waited for; later it is neither computed nor counted.
        caller : Caller
            Whom it is counted for.
        done : Done
            Told the round that answers and the output, or the error; called once, by any thread.

        Raises
        ------
        RequestError
            Those of `Gate.charge`, `Batcher.ask` and `find`.
        """
        target = self.find(self.name, version) if version else None
        rows, deadline = request.rows, time.monotonic() + patience
        go = partial(self._batcher.ask, rows, deadline, done, target)
        self._gate.charge(caller, rows, deadline, go, done)

    def together(self) -> AbstractContextManager[None]:
        """Run what is asked for in the block together; see `Batcher.together`."""
        return self._batcher.together()

    def patience(self, request: InferRequest) -> float:
        """Return the seconds within which a request is answered."""
        most = self.limits.deadline_seconds
        return most if request.timeout is None else min(most, request.timeout)

    def response(self, request: InferRequest, version: str, output: Array) -> InferResponse:
        """Return the answer to a request."""
        return InferResponse(self.name, version, request.id, output)

    def count(
        self,
        caller: Caller,
        protocol: Protocol,
        outcome: str,
        seconds: float,
        version: str,
        rows: int,
    ) -> None:
        """Count a request that was answered, or refused.

        Parameters
        ----------
        caller : Caller
            Whose it was.
        protocol, outcome, seconds
            As `Metrics.request` has them.
        version : str
            The round that answered, or that was asked for; empty for the current one.
        rows : int
            Rows of the request; 0 where they are not known.
        """
        self._gate.answered(caller, protocol, version, rows, outcome)
        self.metrics.request(protocol, outcome, seconds)
        answering = version or self.holder.current.version
        self.statistics.answered(answering, seconds, is_success=outcome == "ok")

    def drain(self) -> None:
        """Say that no more requests should come; those that come are still answered."""
        self._is_draining = True

    def close(self) -> None:
        """Answer what waits, and end."""
        self.drain()
        self.watcher.stop()
        self._batcher.close()
        self._gate.close()

    def _swapped(self, served: ServedRound) -> None:
        self.metrics.swapped()
        self._gate.did(AuditEvent("swap", version=served.version, outcome="ok"))

    def _refused(self) -> None:
        self.metrics.refused()
        self._gate.did(AuditEvent("refuse-round", version=self.holder.current.version))

    def _executed(self, batch: Execution) -> None:
        self.metrics.batch(batch.rows)
        self.statistics.executed(batch)

    def _run(self, target: ServedRound | None, rows: Array, replica: int) -> tuple[str, Array]:
        # Read once: label and output are of one round, whatever is swapped meanwhile.
        served = self.holder.current if target is None else target
        return served.version, self.outputs.apply(self.engine.run(served, rows, replica))
