"""The global model on the public test set, and by the clients on their own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.app import ConfigRecord as Request
from flwr.serverapp.grid import Grid

from fedveil.client.evaluation import CLIENTS, EXAMPLES, MEAN, WEIGHTED, evaluate
from fedveil.client.local_training import place
from fedveil.client.weights import load
from fedveil.strategies.exchange import exchange
from fedveil.strategies.secure_rounds import SecureRounds
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
    load(model, arrays)
    return evaluate(place(model, device), task, examples)


def evaluate_by_clients(
    grid: Grid,
    arrays: ArrayRecord,
    request: Request,
    nodes: Sequence[int],
    timeout: float,
    secure: SecureRounds | None = None,
) -> ClientFigures:
    """Ask clients to evaluate a global model, and average what they tell.

    Replies hold `fedveil.client.evaluation.summands`; noisy ones ``correct`` and ``total``. Only
    their sums are used, and under secure aggregation only their sums are seen.

    Parameters
    ----------
    grid : Grid
        Where the clients are.
    arrays : ArrayRecord
        The global model.
    request : ConfigRecord
        The run's configuration, with ``round`` and ``attempt``.
    nodes : sequence of int
        Whom to ask.
    timeout : float
        Seconds to wait.
    secure : SecureRounds, optional
        Sums the figures; without it they come in clear.

    Raises
    ------
    BelowThresholdError
        If under secure aggregation too few clients are left.
    """
    content = RecordDict({"arrays": arrays, "config": request})
    messages = [Message(content, dst_node_id=node, message_type="evaluate") for node in nodes]
    if secure is None:
        sums = _sum_in_clear(exchange(grid, messages, timeout))
    else:
        turn = (int(str(request["round"])), int(str(request["attempt"])))
        sums = dict(secure.attempt(*turn, messages, weight_key="", timeout=timeout).decoded.figures)
    if "total" in sums:
        return {}, _noisy_accuracy(sums)
    return _quotients(sums, MEAN, CLIENTS), _quotients(sums, WEIGHTED, EXAMPLES)


def _sum_in_clear(replies: Sequence[Message]) -> dict[str, float]:
    sums: dict[str, float] = defaultdict(float)
    for reply in replies:
        if not (reply.has_content() and "metrics" in reply.content.metric_records):
            continue
        figures = dict(reply.content.metric_records["metrics"])
        # It comes from outside, and with a figure that is no number nothing can be summed.
        if all(isinstance(v, int | float) and abs(v) < _LARGEST_FIGURE for v in figures.values()):
            for key, value in figures.items():
                sums[key] += float(value)  # type: ignore[arg-type]  # no list, as just checked
    return dict(sums)


def _noisy_accuracy(sums: Mapping[str, float]) -> dict[str, float]:
    if sums["total"] <= 0.0:
        return {}
    # Noise can push the quotient out of range; cutting it back is post-processing.
    return {"accuracy": min(1.0, max(0.0, sums.get("correct", 0.0) / sums["total"]))}


def _quotients(sums: Mapping[str, float], summed: str, counted: str) -> dict[str, float]:
    """Return each metric's sum over what it was summed over, where that is anything."""
    names = (key.removeprefix(summed) for key in sums if key.startswith(summed))
    return {
        name: sums[summed + name] / sums[counted + name]
        for name in names
        if sums.get(counted + name, 0.0) > 0.0
    }
