"""From a secure sum to what Flower's strategies understand: one reply that holds the mean."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    FedMedian,
    FedTrimmedAvg,
    FedXgbBagging,
    FedXgbCyclic,
    Krum,
    MultiKrum,
    QFedAvg,
    Strategy,
)

from fedveil.envelope import float_arrays
from fedveil.errors import FedveilError
from fedveil.secagg.encoding import DecodedSum

__all__ = ["check_needs_only_the_mean", "mean_reply"]

_NEEDS_SINGLE_UPDATES = {
    Krum: "it compares the clients' updates with each other",
    MultiKrum: "it compares the clients' updates with each other",
    Bulyan: "it compares the clients' updates with each other",
    FedMedian: "a median needs every client's value",
    FedTrimmedAvg: "it leaves out the extreme values of single clients",
    QFedAvg: "it weighs each client's update by that client's own loss",
    FedXgbBagging: "it collects the trees of single clients",
    FedXgbCyclic: "it passes one client's trees on to the next",
    DifferentialPrivacyServerSideFixedClipping: "the server clips each client's update",
    DifferentialPrivacyServerSideAdaptiveClipping: "the server clips each client's update",
    DifferentialPrivacyClientSideFixedClipping: "it looks at single replies; clip and noise are "
    "Fedveil's own part (dp in the configuration)",
    DifferentialPrivacyClientSideAdaptiveClipping: "it reads a bit about each client's update",
}


def check_needs_only_the_mean(strategy: Strategy) -> None:
    """Refuse a strategy that must see single updates.

    Raises
    ------
    FedveilError
        With the reason.
    """
    for kind, reason in _NEEDS_SINGLE_UPDATES.items():
        if isinstance(strategy, kind):
            raise FedveilError(
                f"{type(strategy).__name__} does not work under secure aggregation: {reason}, and "
                "the server learns their sum alone. Use FedAvg, FedAvgM, FedAdam, FedYogi, "
                "FedAdagrad or FedProx"
            )
    if not isinstance(strategy, FedAvg):
        raise FedveilError(
            f"{type(strategy).__name__} is not of the FedAvg family, so it is unknown whether the "
            "mean is all that it needs. Use FedAvg, FedAvgM, FedAdam, FedYogi, FedAdagrad or "
            "FedProx"
        )


def mean_reply(
    request: Message, arrays: ArrayRecord | None, decoded: DecodedSum, weight_key: str
) -> Message:
    """Return the one reply that stands for all: the mean, weighing as much as all together.

    Parameters
    ----------
    request : Message
        One of the requests.
    arrays : ArrayRecord, optional
        The global model that the clients started from; None where figures alone were summed.
        Integers in it stay as they are.
    decoded : DecodedSum
        The sum.
    weight_key : str
        Name of the weight.
    """
    metrics = {name: value / decoded.weight for name, value in decoded.figures.items()}
    records = RecordDict({"metrics": MetricRecord({weight_key: decoded.weight, **metrics})})
    if arrays is not None:
        moved = dict(arrays)
        for name, step in zip(float_arrays(arrays), decoded.mean, strict=True):
            values = arrays[name].numpy()
            moved[name] = Array(np.asarray(values + step, dtype=values.dtype))
        records["arrays"] = ArrayRecord(moved)
    return Message(records, reply_to=request)
