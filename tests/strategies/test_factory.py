"""Each server optimiser against its paper's formula, and its state across a restart."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedveil.config import ServerOptimizerConfig
from fedveil.flower import set_identity
from fedveil.strategies.cohort import CohortGrid
from fedveil.strategies.factory import make_strategy, restore_state, strategy_state

NAMES = ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedprox"]


@pytest.fixture(autouse=True)
def _identity() -> None:
    set_identity(1, 1)


def record(*values: float) -> ArrayRecord:
    return ArrayRecord(
        {"w": Array(np.array(values, dtype=np.float32)), "b": Array(np.float32([0]))}
    )


def play_round(strategy: FedAvg, number: int, model: ArrayRecord, *updates: float) -> ArrayRecord:
    """One round in which each client adds a constant to `w`."""
    grid = CohortGrid(None, range(2, 2 + len(updates)))  # type: ignore[arg-type]
    messages = list(strategy.configure_train(number, model, ConfigRecord(), grid))
    replies = []
    for message, update in zip(messages, updates, strict=True):
        arrays = ArrayRecord(
            {k: Array(v.numpy() + (update if k == "w" else 0)) for k, v in model.items()}
        )
        content = RecordDict(
            {"arrays": arrays, "metrics": MetricRecord({"weight": 1.0, "steps": 1})}
        )
        replies.append(Message(content, reply_to=message))
    aggregate, _ = strategy.aggregate_train(number, replies)
    assert aggregate is not None
    return ArrayRecord({k: Array(v.numpy().astype(np.float32)) for k, v in aggregate.items()})


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_the_mean(name: str) -> None:
    strategy = make_strategy(ServerOptimizerConfig(name=name))
    new = play_round(strategy, 1, record(1.0, 2.0), 0.5, 1.5)
    assert new["w"].numpy().tolist() == [2.0, 3.0]


def test_fedavgm_is_hsu_et_al() -> None:
    config = ServerOptimizerConfig(name="fedavgm", learning_rate=0.5, momentum=0.9)
    strategy = make_strategy(config)
    first = play_round(strategy, 1, record(0.0), 1.0)
    second = play_round(strategy, 2, first, 1.0)
    assert first["w"].numpy() == pytest.approx([0.5])
    assert second["w"].numpy() == pytest.approx([0.5 + 0.5 * 1.9])


def test_fedadagrad_is_reddi_et_al_algorithm_2() -> None:
    strategy = make_strategy(ServerOptimizerConfig(name="fedadagrad", learning_rate=0.1, tau=0.01))
    model, accumulated, expected = record(0.0), 0.0, 0.0
    for number, update in enumerate([1.0, 0.5, 2.0], start=1):
        model = play_round(strategy, number, model, update)
        accumulated += update**2
        expected += 0.1 * update / (np.sqrt(accumulated) + 0.01)
    assert model["w"].numpy() == pytest.approx([expected], rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_restarted_strategy_goes_on_as_if_nothing_had_happened(name: str) -> None:
    config = ServerOptimizerConfig(name=name, learning_rate=0.3)
    updates = [(1.0, 2.0), (-0.5, 0.1), (0.3, 0.3), (2.0, -1.0)]
    straight, model = make_strategy(config), record(1.0, -1.0)
    for number, update in enumerate(updates, start=1):
        model = play_round(straight, number, model, *update)

    broken, halfway = make_strategy(config), record(1.0, -1.0)
    for number, update in enumerate(updates[:2], start=1):
        halfway = play_round(broken, number, halfway, *update)
    state = {k: v.copy() for k, v in strategy_state(broken).items()}
    again = make_strategy(config)
    restore_state(again, state, halfway)
    for number, update in enumerate(updates[2:], start=3):
        halfway = play_round(again, number, halfway, *update)
    for key in model:
        assert halfway[key].numpy().tobytes() == model[key].numpy().tobytes()
