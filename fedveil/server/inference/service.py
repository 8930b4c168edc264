"""The service behind both protocols: what is served, who may ask, and the way to the model."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from dataclasses import dataclass

from fedveil.server.inference.batcher import Batcher
from fedveil.server.inference.engine import Engine, ServedRound
from fedveil.server.inference.errors import ForbiddenError, NotFoundError
from fedveil.server.inference.metrics import Metrics
from fedveil.server.inference.model_holder import ModelHolder
from fedveil.server.inference.oip import Array, InferRequest, InferResponse, Limits, TensorSpec
from fedveil.server.inference.source import RunSource
from fedveil.server.inference.tokens import Scope, TokenFile
from fedveil.server.inference.watcher import Watcher

__all__ = ["SERVER_NAME", "InferenceService", "ModelMetadata"]

SERVER_NAME = "fedveil"

_PLATFORM = "fedveil_pytorch"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelMetadata:
    """What the protocol tells of a model.

    Attributes
    ----------
    name, platform : str
        Of the model.
    versions : tuple of str
        Rounds that are in memory, the one that answers first.
    input, output : TensorSpec
        Its tensors.
    parameters : dict of str to str or float
        Where the weights of one round come from, and what privacy they were made under.
    """

    name: str
    platform: str
    versions: tuple[str, ...]
    input: TensorSpec
    output: TensorSpec
    parameters: dict[str, str | float]


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

    Raises
    ------
    FedveilError
        If the newest round cannot be served.
    """

    def __init__(
        self,
        source: RunSource,
        limits: Limits,
        tokens: TokenFile | None = None,
        interval: float = 1.0,
    ) -> None:
        self.limits = limits
        self.metrics = Metrics()
        self.engine = Engine(source)
        self._source = source
        self._tokens = tokens
        first = self.engine.load_newest()
        self.holder = ModelHolder(first)
        self.name = source.config.task.name
        self._batcher: Batcher[ServedRound] = Batcher(self._run, limits, self.metrics.batch)
        self.watcher = Watcher(
            source.reader,
            self.engine,
            self.holder,
            interval,
            swapped=lambda _: self.metrics.swapped(),
            refused=self.metrics.refused,
        )
        self.metrics.read_when_asked(
            lambda: self._batcher.queued_rows, lambda: self.holder.current.round
        )
        self._is_draining = False

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return not self._is_draining

    def allow(self, authorization: str | None, scope: Scope) -> None:
        """Let a caller pass, or raise what `TokenFile.check` raises.

        Without tokens there are no administrators: a web page in a browser on this machine could
        pose as one.
        """
        if self._tokens is not None:
            self._tokens.check(authorization, scope)
        elif scope == "admin":
            raise ForbiddenError("this takes a token; start the service with --tokens FILE")

    def roll_back(self) -> str:
        """Serve the round before again, until a newer one is committed; return its version.

        Raises
        ------
        NotFoundError
            If none is in memory.
        """
        if not self.holder.roll_back():
            raise NotFoundError("no round before this one is in memory")
        served = self.holder.current
        _log.warning("rolled back to round %d of run %s", served.round, served.run)
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
        dp = self._source.config.dp
        report = self._source.report_sha256(served.round)
        claims = {} if served.epsilon is None else {"epsilon": served.epsilon, "delta": dp.delta}
        parameters: dict[str, str | float] = {
            "run": served.run,
            "round": served.round,
            "created": served.created,
            "privacy_unit": "none" if served.epsilon is None else dp.unit,
            **claims,
            **({} if served.accuracy is None else {"accuracy": served.accuracy}),
            **({} if report is None else {"report_sha256": report}),
        }
        return ModelMetadata(
            name=self.name,
            platform=_PLATFORM,
            versions=tuple(kept.version for kept in self.holder.kept),
            input=self.engine.input,
            output=self.engine.output,
            parameters=parameters,
        )

    def submit(
        self, request: InferRequest, version: str, patience: float
    ) -> Future[tuple[str, Array]]:
        """Send a request to the model; the future holds the round that answers, and the output.

        Parameters
        ----------
        request : InferRequest
            The request.
        version : str
            The round that is asked for; empty for the one that is current when it is computed.
        patience : float
            Seconds that the answer is waited for.

        Raises
        ------
        RequestError
            Those of `Batcher.submit` and `find`.
        """
        target = self.find(self.name, version) if version else None
        return self._batcher.submit(request.rows, patience, target)

    def patience(self, request: InferRequest) -> float:
        """Return the seconds within which a request is answered."""
        most = self.limits.deadline_seconds
        return most if request.timeout is None else min(most, request.timeout)

    def response(self, request: InferRequest, version: str, output: Array) -> InferResponse:
        """Return the answer to a request."""
        return InferResponse(self.name, version, request.id, output)

    def drain(self) -> None:
        """Say that no more requests should come; those that come are still answered."""
        self._is_draining = True

    def close(self) -> None:
        """Answer what waits, and end."""
        self.drain()
        self.watcher.stop()
        self._batcher.close()

    def _run(self, target: ServedRound | None, rows: Array) -> tuple[str, Array]:
        # Read once: label and output are of one round, whatever is swapped meanwhile.
        served = self.holder.current if target is None else target
        return served.version, self.engine.run(served, rows)
