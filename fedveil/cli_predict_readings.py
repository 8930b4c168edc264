"""What a service's answers mean: classes, and probabilities where it tells them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedveil.cli_predict_access import AskError
from fedveil.server.inference.oip import Array

__all__ = ["Reading", "read_answers"]


@dataclass(frozen=True, eq=False)
class Reading:
    """Answers as people read them.

    Parameters
    ----------
    labels : ndarray of int64, shape (n,)
        The class of each row.
    shares : ndarray of float64, shape (n, classes), or None
        Probabilities; None where the service tells the class alone. A 0 may also be a class that
        it keeps to itself.
    """

    labels: NDArray[np.int64]
    shares: NDArray[np.float64] | None


def read_answers(output: Array, form: str, classes: int) -> Reading:
    """Read the output of a service.

    Parameters
    ----------
    output : ndarray, shape (n,) or (n, values)
        What it sent.
    form : str
        What its metadata say that answers give away: ``full`` is logits, ``labels`` classes,
        ``top-K`` and ``round-D`` probabilities.
    classes : int
        How many there are.

    Raises
    ------
    AskError
        If the output is none of such a service.
    """
    rows = output.reshape(len(output), -1)
    is_one_logit = classes == 2 and rows.shape[1] == 1
    values = 1 if form == "labels" or is_one_logit else classes
    if rows.shape[1] != values or not np.isfinite(rows).all():
        raise AskError(
            f"the service gives {rows.shape[1]} values for {classes} classes, or some that are no "
            "numbers"
        )
    if form == "labels":
        labels = rows[:, 0].astype(np.int64)
        if labels.min() < 0 or labels.max() >= classes:
            raise AskError(f"the service names a class that is none of its {classes}")
        return Reading(labels, None)
    wide = rows.astype(np.float64)
    is_full = form == "full"
    if values == 1:
        with np.errstate(over="ignore"):
            yes = 1 / (1 + np.exp(-wide)) if is_full else wide
        labels = (wide[:, 0] > (0 if is_full else 0.5)).astype(np.int64)
        return Reading(labels, np.hstack([1 - yes, yes]))
    if is_full:
        weights = np.exp(wide - wide.max(axis=1, keepdims=True))
        return Reading(wide.argmax(axis=1), weights / weights.sum(axis=1, keepdims=True))
    return Reading(wide.argmax(axis=1), wide)
