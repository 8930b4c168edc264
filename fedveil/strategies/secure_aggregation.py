"""Secure aggregation around a Flower strategy, which then sees the mean and nobody's update."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Mapping

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp.grid import Grid
from flwr.serverapp.strategy import FedAvg, Result, Strategy

from fedveil.errors import FedveilError
from fedveil.flower import show_errors_in_one_line
from fedveil.secagg.errors import BelowThresholdError
from fedveil.secagg.identity import Roster
from fedveil.strategies.dtypes import cast_like
from fedveil.strategies.grid_view import BackoffGrid
from fedveil.strategies.secure_mean import check_needs_only_the_mean, mean_reply
from fedveil.strategies.secure_rounds import SecureRounds, SecureSettings

__all__ = ["SecureAggregation"]

_log = logging.getLogger("flwr")
show_errors_in_one_line()


class SecureAggregation(Strategy):
    """Wraps a strategy that needs only the mean of the clients' updates and metrics.

    The clients' app needs `fedveil.client.secure_aggregation.secure_aggregation_mod`. Both
    training and evaluation go through the protocol; the strategy gets one reply that holds the
    weighted mean.

    Parameters
    ----------
    inner : FedAvg
        FedAvg, FedAvgM, FedAdam, FedYogi, FedAdagrad, FedProx, or a subclass of one.
    clip_norm : float
        L2 bound of an update (the difference to the global model). It fixes the range that is
        encoded: larger updates are scaled down to it, and how many were is logged.
    max_weight : float
        Largest weight of a client; one with more is left out and told so. Rounding costs about
        clip_norm x max_weight / (weight x 2^27) a coordinate, so take neither larger than needed.
    ring_bits : {16, 32}
        Bits for each parameter on the wire.
    setup_rounds : int
        Rounds that one exchange of keys serves while the same nodes take part.
    retries : int
        Further attempts at a round when too few clients are left.
    timeout : float
        Seconds to wait for the clients' training or evaluation.
    stage_timeout : float
        Seconds to wait for each other stage.
    corrupt_share, dropped_share : float
        Shares of the clients that collude with the server, and that drop out, above 100 clients.
    roster : Roster, optional
        Who may take part. Clients check each other against rosters of their own in any case.

    Raises
    ------
    FedveilError
        If the strategy must see single updates.
    """

    def __init__(
        self,
        inner: FedAvg,
        *,
        clip_norm: float = 10.0,
        max_weight: float = 10_000.0,
        ring_bits: int = 32,
        setup_rounds: int = 10,
        retries: int = 2,
        timeout: float = 3600.0,
        stage_timeout: float = 60.0,
        corrupt_share: float = 0.05,
        dropped_share: float = 0.05,
        roster: Roster | None = None,
    ) -> None:
        check_needs_only_the_mean(inner)
        self.inner = inner
        self._settings = SecureSettings(
            run=secrets.token_hex(8),
            clip_norm=clip_norm,
            max_weight=max_weight,
            ring_bits=ring_bits,
            setup_rounds=setup_rounds,
            corrupt_share=corrupt_share,
            dropped_share=dropped_share,
            stage_timeout=stage_timeout,
        )
        self._retries = retries
        self._timeout = timeout
        self._roster = roster
        self._rounds: SecureRounds | None = None
        self._mean: Message | None = None
        self._model: ArrayRecord | None = None

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the rounds as any strategy does; `timeout` is for training and for evaluation."""
        self._timeout = timeout
        self._rounds = None
        return super().start(
            BackoffGrid(grid),
            initial_arrays,
            num_rounds,
            timeout,
            train_config,
            evaluate_config,
            evaluate_fn,
        )

    def summary(self) -> None:
        """Log what secure aggregation is set to, then the strategy's own summary."""
        s = self._settings
        _log.info(
            "\t├──> Secure aggregation: clip norm %g, max weight %g, %d bits, keys for %d rounds",
            s.clip_norm,
            s.max_weight,
            s.ring_bits,
            s.setup_rounds,
        )
        self.inner.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the nodes that the strategy chooses, by way of the protocol; nothing is left to send.

        Raises
        ------
        FedveilError
            If after all retries too few clients are left.
        """
        messages = list(self.inner.configure_train(server_round, arrays, config, grid))
        self._model = arrays
        self._mean = self._sum(server_round, messages, grid, arrays)
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the strategy aggregate the mean; the model keeps its types, on which keys depend."""
        arrays, metrics = self.inner.aggregate_train(server_round, self._take_mean(replies))
        if arrays is not None and self._model is not None:
            arrays = cast_like(arrays, self._model)
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask for evaluation by way of the protocol; figures alone are summed.

        Raises
        ------
        FedveilError
            If after all retries too few clients are left.
        """
        messages = list(self.inner.configure_evaluate(server_round, arrays, config, grid))
        self._mean = self._sum(server_round, messages, grid, None)
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Let the strategy aggregate the mean figures."""
        return self.inner.aggregate_evaluate(server_round, self._take_mean(replies))

    def _sum(
        self, server_round: int, messages: list[Message], grid: Grid, arrays: ArrayRecord | None
    ) -> Message | None:
        """Return the reply that stands for all; None where the strategy asks nobody."""
        if not messages:
            return None
        if self._rounds is None:
            self._rounds = SecureRounds(grid, self._settings, self._roster)
        why = ""
        for attempt in range(1, self._retries + 2):
            try:
                found = self._rounds.attempt(
                    server_round,
                    attempt,
                    messages,
                    weight_key=self.inner.weighted_by_key,
                    timeout=self._timeout,
                )
            except BelowThresholdError as error:
                self._tell(self._rounds, self._rounds.failures)
                _log.warning("secure aggregation, round %d: %s", server_round, error)
                first = next(iter(self._rounds.failures.items()), None)
                why = f"{error}; {self._rounds.who(first[0])}: {first[1]}" if first else str(error)
                continue
            self._tell(self._rounds, found.failures)
            if found.decoded.clipped:
                _log.warning(
                    "secure aggregation, round %d: %d of %d updates were scaled down to clip_norm "
                    "= %g",
                    server_round,
                    found.decoded.clipped,
                    len(found.nodes),
                    self._settings.clip_norm,
                )
            return mean_reply(messages[0], arrays, found.decoded, self.inner.weighted_by_key)
        raise FedveilError(
            f"round {server_round}: too few clients were left in {self._retries + 1} attempts: "
            + why
        )

    def _tell(self, rounds: SecureRounds, failures: Mapping[int, str]) -> None:
        for node, reason in failures.items():
            _log.warning("secure aggregation: %s is left out: %s", rounds.who(node), reason)

    def _take_mean(self, replies: Iterable[Message]) -> list[Message]:
        if list(replies):
            raise FedveilError("a reply came in clear; under secure aggregation none may")
        mean, self._mean = self._mean, None
        return [mean] if mean is not None else []
