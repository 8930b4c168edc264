"""Rounds whose noise is shared among the clients, or added by the server, and the step they give.

The strategy is given one reply that stands for all: the old model moved by the step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedveil.envelope import WITHIN, float_arrays, values_of
from fedveil.strategies.collecting import (
    Asking,
    Collected,
    check_one_each,
    sort_replies,
    sum_of,
)
from fedveil.strategies.exchange import exchange
from fedveil.strategies.factory import WEIGHT_KEY
from fedveil.strategies.secure_rounds import SecureRounds

__all__ = ["PrivateSum", "Total", "collect_privately", "flat_difference", "moved"]


@dataclass(frozen=True)
class Total:
    """A sum over clients, without noise of the server's.

    Parameters
    ----------
    values : ndarray
        Shape (d,): integers as the clients' mechanism encoded them (int64, with whatever stands
        behind the vector), or the sum of their clipped updates (float64).
    clients : int
        How many are in it.
    within : float
        How many say that their update was within the clip norm; 0 for integers, which hold it
        themselves.
    rounding : float
        By how much the encoding may have lengthened one client's update, in L2.
    """

    values: NDArray[np.int64] | NDArray[np.float64]
    clients: int
    within: float = 0.0
    rounding: float = 0.0


class PrivateSum(Protocol):
    """What a privacy mode makes of a sum."""

    @property
    def integers(self) -> int | None:
        """How many integers each client answers with; None where it answers with its weights."""

    @property
    def clip_norm(self) -> float | None:
        """Clip norm of the next round, where it adapts."""

    @property
    def largest_norm(self) -> float:
        """L2 bound of one client's update, to which the server holds what comes in clear."""

    @property
    def trainable(self) -> frozenset[str]:
        """Names of the arrays that move."""

    def step(self, turn: tuple[int, int], total: Total) -> NDArray[np.float64]:
        """Return by how much the model moves, shape (d,), and adapt for the next round.

        Parameters
        ----------
        turn : tuple of int
            Round and attempt.
        total : Total
            The sum. What comes out has all the noise that is accounted.
        """

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return what goes on from round to round, to be committed with each."""

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from what `state` returned, among whatever else was committed."""


def collect_privately(
    asking: Asking, summing: PrivateSum, secure: SecureRounds | None
) -> Collected:
    """Collect the sum that the mode is about, and give the step that it makes of it.

    Raises
    ------
    RoundError
        If the clients did something else than they were asked for.
    BelowThresholdError
        If under secure aggregation too few clients are left.
    """
    if secure is None:
        total, clients, failures = _sum_in_clear(asking, summing)
    else:
        total, clients, failures = _sum_masked(asking, summing, secure)
    turn = (asking.intent.round, asking.intent.attempt)
    replies = []
    if clients:
        step = summing.step(turn, total)
        arrays = moved(asking.model, step, summing.trainable)
        metrics = MetricRecord({WEIGHT_KEY: 1.0})
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        replies = [Message(content, reply_to=asking.messages[0])]
    return Collected(
        replies=replies, steps=dict.fromkeys(clients, 1), failures=failures, train_loss=None
    )


def _sum_masked(
    asking: Asking, summing: PrivateSum, secure: SecureRounds
) -> tuple[Total, list[str], Mapping[str, str]]:
    found = sum_of(asking, secure, summing.integers)
    decoded = found.decoded
    check_one_each(asking.intent.round, decoded, 1)
    if decoded.integers is not None:
        total = Total(decoded.integers, decoded.clients)
    else:
        values = _flat(decoded.mean) * decoded.weight
        total = Total(
            values,
            decoded.clients,
            within=min(max(decoded.figures.get(WITHIN, 0.0), 0.0), float(decoded.clients)),
            rounding=found.word * math.sqrt(len(values)),
        )
    failures = {asking.client_of[node]: reason for node, reason in found.failures.items()}
    return total, [asking.client_of[node] for node in found.nodes], failures


def _sum_in_clear(
    asking: Asking, summing: PrivateSum
) -> tuple[Total, list[str], Mapping[str, str]]:
    received = exchange(asking.grid, asking.messages, asking.timeout, asking.tell)
    replies = sort_replies(received, asking, equal_weights=True)
    values = np.zeros(len(flat_difference(asking.model, asking.model)))
    for reply in replies.usable.values():
        update = flat_difference(reply.message.content.array_records["arrays"], asking.model)
        norm = math.sqrt(float(update @ update))
        # Its client clipped it, or lies: what the noise hides is bounded here.
        values += update * min(1.0, summing.largest_norm / norm if norm else 1.0)
    within = float(sum(reply.within for reply in replies.usable.values()))
    total = Total(values, len(replies.usable), within=within)
    return total, list(replies.usable), replies.failures


def flat_difference(new: ArrayRecord, old: ArrayRecord) -> NDArray[np.float64]:
    """Return new - old over the floating-point arrays as one vector, float64."""
    return _flat(
        [
            values_of(new[name]).astype(np.float64) - values_of(old[name]).astype(np.float64)
            for name in float_arrays(old)
        ]
    )


def moved(arrays: ArrayRecord, step: NDArray[np.float64], trainable: frozenset[str]) -> ArrayRecord:
    """Return a model moved by a step.

    Parameters
    ----------
    arrays : ArrayRecord
        The model.
    step : ndarray
        Shape (d,), over its floating-point arrays.
    trainable : frozenset of str
        Which of them move; the noise in the others is dropped.
    """
    new, at = dict(arrays), 0
    for name in float_arrays(arrays):
        old = arrays[name].numpy()
        if name in trainable:
            part = step[at : at + old.size].reshape(old.shape)
            new[name] = Array(np.asarray(old + part, dtype=old.dtype))
        at += old.size
    return ArrayRecord(new)


def _flat(
    parts: list[NDArray[np.float64]] | tuple[NDArray[np.float64], ...],
) -> NDArray[np.float64]:
    return np.concatenate([part.reshape(-1) for part in parts]) if parts else np.zeros(0)
