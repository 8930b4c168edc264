"""The global model on the public test set, and by the clients on their own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.app import ConfigRecord as Request
from flwr.serverapp.grid import Grid

from fedveil.client.evaluation import evaluate
from fedveil.client.local_training import place
from fedveil.strategies.exchange import exchange
from fedveil.tasks.base import Examples, Task

__all__ = ["ClientFigures", "evaluate_by_clients", "evaluate_publicly"]

_LARGEST_FIGURE = 1e12

ClientFigures = tuple[dict[str, float], dict[str, float]]
"""Metrics averaged over clients, and over records."""


def evaluate_publicly(
    task: Task, arrays: ArrayRecord, examples: Examples, device: str
) -> dict[str, float]:
    """Return the task's metrics of a global model on the public test set."""
    model = task.model()
    model.load_state_dict(arrays.to_torch_state_dict())
    return evaluate(place(model, device), task, examples)


def evaluate_by_clients(
    grid: Grid,
    arrays: ArrayRecord,
    request: Request,
    nodes: Sequence[int],
    timeout: float,
) -> ClientFigures:
    """Ask clients to evaluate a global model, and average what they tell.

    Exact replies hold ``examples`` and metrics; noisy ones hold ``correct`` and ``total``, of
    which only the sums over clients mean anything.
    """
    content = RecordDict({"arrays": arrays, "config": request})
    messages = [Message(content, dst_node_id=node, message_type="evaluate") for node in nodes]
    replies = [
        dict(reply.content.metric_records["metrics"])
        for reply in exchange(grid, messages, timeout)
        if reply.has_content() and "metrics" in reply.content.metric_records
    ]
    figures = [
        {
            key: float(value)
            for key, value in reply.items()
            # It comes from outside, and a figure that is no number cannot be averaged.
            if isinstance(value, int | float) and abs(value) < _LARGEST_FIGURE
        }
        for reply in replies
    ]
    if any("total" in figure for figure in figures):
        return {}, _noisy_accuracy(figures)
    return _average(figures, weighted=False), _average(figures, weighted=True)


def _noisy_accuracy(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    correct = sum(figure.get("correct", 0.0) for figure in figures)
    total = sum(figure.get("total", 0.0) for figure in figures)
    if total <= 0.0:
        return {}
    # Noise can push the quotient out of range; cutting it back is post-processing.
    return {"accuracy": min(1.0, max(0.0, correct / total))}


def _average(figures: Sequence[Mapping[str, float]], *, weighted: bool) -> dict[str, float]:
    sums: dict[str, float] = defaultdict(float)
    weights: dict[str, float] = defaultdict(float)
    for figure in figures:
        examples = figure.get("examples", 0.0)
        if examples <= 0.0:
            continue
        for key, value in figure.items():
            if key != "examples":
                weight = examples if weighted else 1.0
                sums[key] += weight * value
                weights[key] += weight
    return {key: sums[key] / weights[key] for key in sums}
