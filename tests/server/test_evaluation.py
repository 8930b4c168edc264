"""Figures from clients are averaged as they should be, and nonsense is left out."""

import math

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedveil.client.evaluation import CLIENTS, EXAMPLES, MEAN, WEIGHTED, summands
from fedveil.server.evaluation import _quotients, evaluate_by_clients
from fedveil.simulations.engines.sequential import SequentialEngine
from fedveil.simulations.grid import InProcessGrid


def ask(*told: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    app = ClientApp()

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        figures = dict(told[int(context.node_config["partition-id"])])
        if "examples" in figures:
            figures = summands(int(figures.pop("examples")), figures, ["accuracy"])
        return Message(RecordDict({"metrics": MetricRecord(figures)}), reply_to=message)

    nodes = {2 + i: {"partition-id": i} for i in range(len(told))}
    grid = InProcessGrid(SequentialEngine(app), nodes, run_id=1)
    return evaluate_by_clients(grid, ArrayRecord(), ConfigRecord(), sorted(nodes), 10.0)


def test_means_over_clients_and_over_records() -> None:
    mean, weighted = ask({"examples": 10.0, "accuracy": 1.0}, {"examples": 30.0, "accuracy": 0.0})
    assert mean == {"accuracy": 0.5}
    assert weighted == {"accuracy": 0.25}


def test_a_client_without_records_counts_for_nothing() -> None:
    mean, _ = ask({"examples": 10.0, "accuracy": 1.0}, {"examples": 0.0})
    assert mean == {"accuracy": 1.0}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300])
def test_figures_that_are_no_numbers_are_left_out(bad: float) -> None:
    mean, weighted = ask({"examples": 1.0, "accuracy": 0.5}, {"examples": 1.0, "accuracy": bad})
    assert mean == weighted == {"accuracy": 0.5}


def test_noisy_counts_are_added_before_they_are_divided() -> None:
    mean, weighted = ask({"correct": 12.0, "total": 10.0}, {"correct": -2.0, "total": 10.0})
    assert mean == {}
    assert weighted == {"accuracy": 0.5}


@pytest.mark.parametrize(("correct", "accuracy"), [(50.0, 1.0), (-3.0, 0.0)])
def test_a_noisy_quotient_is_cut_to_its_range(correct: float, accuracy: float) -> None:
    assert ask({"correct": correct, "total": 10.0})[1] == {"accuracy": accuracy}


def test_noise_that_swallows_the_total_leaves_no_figure() -> None:
    assert ask({"correct": 3.0, "total": -1.0}) == ({}, {})


def test_a_metric_that_a_client_lacks_is_averaged_over_the_others() -> None:
    sums: dict[str, float] = {}
    for examples, figures in ((10, {"accuracy": 1.0, "auc": 0.8}), (30, {"accuracy": 0.5})):
        told = summands(examples, figures, ["accuracy", "auc"])
        assert set(told) == set(summands(0, {}, ["auc", "accuracy"])), "sums need equal names"
        for name, value in told.items():
            sums[name] = sums.get(name, 0.0) + value
    assert _quotients(sums, MEAN, CLIENTS) == {"accuracy": 0.75, "auc": 0.8}
    assert _quotients(sums, WEIGHTED, EXAMPLES) == {"accuracy": 0.625, "auc": 0.8}
