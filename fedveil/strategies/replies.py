"""Which replies may be added up: checks of one training reply against the global model."""

from __future__ import annotations

import math

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord

from fedveil.errors import FedveilError
from fedveil.strategies.factory import WEIGHT_KEY

__all__ = ["ReplyError", "check_training_reply", "error_reason"]


class ReplyError(FedveilError):
    """A reply that must not reach the model."""


def check_training_reply(reply: Message, model: ArrayRecord, *, equal_weights: bool) -> int:
    """Check a training reply and return the optimiser steps that it reports.

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
        raise ReplyError(error_reason(reply))
    if len(reply.content.array_records) != 1 or len(reply.content.metric_records) != 1:
        raise ReplyError("the reply must hold one record of arrays and one of metrics")
    arrays = next(iter(reply.content.array_records.values()))
    metrics = next(iter(reply.content.metric_records.values()))
    _check_arrays(arrays, model)
    _check_weight(metrics, equal_weights=equal_weights)
    steps = metrics.get("steps")
    if not isinstance(steps, int) or steps < 0:
        raise ReplyError(f"the reply reports {steps!r} steps")
    return steps


def error_reason(reply: Message) -> str:
    """Return why a client failed, in its own words."""
    # Flower wraps what a ClientApp raised as "<class 'x.Y'>:<'text'>".
    reason = reply.error.reason or f"error code {reply.error.code}"
    _, wrapped, text = reason.partition(">:<")
    return text.rstrip(">").strip("'\"") if wrapped else reason


def _check_arrays(arrays: ArrayRecord, model: ArrayRecord) -> None:
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
            values = array.numpy()
        except Exception:  # noqa: BLE001  # of bytes from outside, numpy's parser may raise anything
            raise ReplyError(f"{name} cannot be read") from None
        if values.dtype != np.dtype(expected.dtype) or values.shape != tuple(expected.shape):
            raise ReplyError(f"{name} holds something else than it says")
        if values.dtype.kind == "f" and not bool(np.isfinite(values).all()):
            raise ReplyError(f"{name} holds NaN or infinity")


def _check_weight(metrics: MetricRecord, *, equal_weights: bool) -> None:
    weight = metrics.get(WEIGHT_KEY)
    if not isinstance(weight, int | float) or not math.isfinite(weight) or weight <= 0:
        raise ReplyError(f"the reply's weight is {weight!r}")
    if equal_weights and weight != 1.0:
        raise ReplyError(
            f"the reply's weight is {weight!r}; under privacy it must be 1 for every client"
        )
