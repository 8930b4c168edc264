"""The server optimiser by name, and its state as arrays for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    FedYogi,
)
from numpy.typing import NDArray

from fedveil.config import ServerOptimizerConfig

__all__ = ["WEIGHT_KEY", "make_strategy", "restore_state", "strategy_state"]

WEIGHT_KEY = "weight"
"""Key of a reply's weight in the mean."""


def make_strategy(config: ServerOptimizerConfig) -> FedAvg:
    """Return Flower's strategy of this name.

    It takes every node that it is shown: the cohort is chosen elsewhere, by the public seed.
    """
    # Flower's types for these keywords differ by class; all six take them.
    common = {
        "fraction_train": 1.0,
        "fraction_evaluate": 1.0,
        "min_train_nodes": 1,
        "min_evaluate_nodes": 1,
        "min_available_nodes": 1,
        "weighted_by_key": WEIGHT_KEY,
    }
    adaptive = {"eta": config.learning_rate, "tau": config.tau}
    moments = {"beta_1": config.beta_1, "beta_2": config.beta_2}
    match config.name:
        case "fedavg":
            return FedAvg(**common)  # type: ignore[arg-type]
        case "fedavgm":
            return FedAvgM(
                **common,  # type: ignore[arg-type]
                server_learning_rate=config.learning_rate,
                server_momentum=config.momentum,
            )
        case "fedadam":
            return FedAdam(**common, **adaptive, **moments)  # type: ignore[arg-type]
        case "fedyogi":
            return FedYogi(**common, **adaptive, **moments)  # type: ignore[arg-type]
        case "fedadagrad":
            return FedAdagrad(**common, **adaptive)  # type: ignore[arg-type]
        case "fedprox":
            return FedProx(**common, proximal_mu=config.proximal_mu)  # type: ignore[arg-type]


def strategy_state(strategy: FedAvg) -> dict[str, NDArray[np.generic]]:
    """Return what a strategy carries from round to round, beside the model itself."""
    state: dict[str, NDArray[np.generic]] = {}
    momentum = getattr(strategy, "momentum_vector", None)
    for index, value in enumerate(momentum or []):
        state[f"momentum/{index:05d}"] = np.asarray(value)
    for moment in ("m_t", "v_t"):
        for name, value in (getattr(strategy, moment, None) or {}).items():
            state[f"{moment}/{name}"] = np.asarray(value)
    return state


def restore_state(
    strategy: FedAvg, state: Mapping[str, NDArray[np.generic]], arrays: ArrayRecord
) -> None:
    """Put back what `strategy_state` took, and the model it belongs to."""
    momentum = [state[key] for key in sorted(state) if key.startswith("momentum/")]
    if isinstance(strategy, FedAvgM):
        strategy.current_arrays = ArrayRecord(
            {name: Array(array.numpy()) for name, array in arrays.items()}
        )
        strategy.momentum_vector = momentum or None
    for moment in ("m_t", "v_t"):
        if hasattr(strategy, moment):
            prefix = f"{moment}/"
            values = {
                key.removeprefix(prefix): value
                for key, value in state.items()
                if key.startswith(prefix)
            }
            setattr(strategy, moment, values or None)
