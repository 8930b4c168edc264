"""Which replies may be added up: checks of one training reply against the global model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedveil.envelope import WITHIN, values_of
from fedveil.errors import FedveilError
from fedveil.strategies.factory import WEIGHT_KEY
from fedveil.strategies.failures import failure_in

__all__ = ["ReplyError", "TrainingReply", "check_training_reply"]

_LARGEST_WEIGHT = 1e12


class ReplyError(FedveilError):
    """A reply that must not reach the model."""


@dataclass(frozen=True)
class TrainingReply:
    """What of a training reply may be used.

    Parameters
    ----------
    message : Message
        The reply with the arrays and the weight alone, under names of ours: whatever else a
        client sends must not meet a strategy, which would stop at what it does not expect.
    weight : float
        Weight of the client in the mean.
    steps : int
        Optimiser steps that it reports.
    train_loss : float, optional
        Mean loss, where it tells one.
    within : bool
        Whether it says that its update was within the clip norm.
    """

    message: Message
    weight: float
    steps: int
    train_loss: float | None
    within: bool = False


def check_training_reply(
    reply: Message, model: ArrayRecord, *, equal_weights: bool
) -> TrainingReply:
    """Check a training reply and return what of it may be used.

    Parameters
    ----------
    reply : Message
        A reply with content or with an error.
    model : ArrayRecord
        The global model that the client was sent.
    equal_weights : bool
        Whether every weight must be 1, as under privacy: a weight taken from the number of
        records would release that number.

    Raises
    ------
    ReplyError
        If the reply is an error, names, shapes or dtypes differ from the model's, a value is NaN
        or infinite, or the weight or the steps are impossible.
    """
    if reply.has_error():
        raise ReplyError(failure_in(reply))
    if len(reply.content.array_records) != 1 or len(reply.content.metric_records) != 1:
        raise ReplyError("the reply must hold one record of arrays and one of metrics")
    arrays = next(iter(reply.content.array_records.values()))
    metrics = next(iter(reply.content.metric_records.values()))
    checked = _checked_arrays(arrays, model)
    weight = _weight(metrics, equal_weights=equal_weights)
    steps = metrics.get("steps")
    if not isinstance(steps, int) or steps < 0:
        raise ReplyError(f"the reply reports {steps!r} steps")
    loss = metrics.get("train_loss")
    told = MetricRecord({WEIGHT_KEY: weight})
    reply.content = RecordDict({"arrays": checked, "metrics": told})
    return TrainingReply(
        message=reply,
        weight=weight,
        steps=steps,
        train_loss=loss if isinstance(loss, float) and math.isfinite(loss) else None,
        within=metrics.get(WITHIN) == 1.0,
    )


class _Read(Array):
    """An array whose values are read already, for a strategy, which asks for them again."""

    def __init__(self, array: Array, values: NDArray[np.generic]) -> None:
        super().__init__(array.dtype, tuple(array.shape), array.stype, array.data)
        self._values = values

    def numpy(self) -> NDArray[np.generic]:
        """Return the values, read-only."""
        return self._values


def _checked_arrays(arrays: ArrayRecord, model: ArrayRecord) -> ArrayRecord:
    read = {}
    if list(arrays) != list(model):
        raise ReplyError(f"the reply's arrays are {list(arrays)}, the model's are {list(model)}")
    for name, array in arrays.items():
        expected = model[name]
        if tuple(array.shape) != tuple(expected.shape) or array.dtype != expected.dtype:
            raise ReplyError(
                f"{name} is {array.dtype} {tuple(array.shape)}, the model's is {expected.dtype} "
                f"{tuple(expected.shape)}"
            )
        try:
            values = values_of(array)
        except Exception:  # noqa: BLE001  # of bytes from outside, numpy's parser may raise anything
            raise ReplyError(f"{name} cannot be read") from None
        if values.dtype != np.dtype(expected.dtype) or values.shape != tuple(expected.shape):
            raise ReplyError(f"{name} holds something else than it says")
        if values.dtype.kind == "f" and not bool(np.isfinite(values).all()):
            raise ReplyError(f"{name} holds NaN or infinity")
        values.flags.writeable = False
        read[name] = _Read(array, values)
    return ArrayRecord(read)


def _weight(metrics: MetricRecord, *, equal_weights: bool) -> float:
    weight = metrics.get(WEIGHT_KEY)
    if not isinstance(weight, int | float) or not 0.0 < weight <= _LARGEST_WEIGHT:
        raise ReplyError(f"the reply's weight is {weight!r}; it must be in (0, 1e12]")
    if equal_weights and weight != 1.0:
        raise ReplyError(
            f"the reply's weight is {weight!r}; under privacy it must be 1 for every client"
        )
    return float(weight)
