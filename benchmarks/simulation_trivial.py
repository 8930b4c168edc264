"""The trivial federation of `simulation.py`: clients that send back what they get.

With the argument ``ray`` it runs under Flower's own simulation, in an environment of its own; with
``fedveil``, on our in-process grid. Client app and strategy are Flower's in both. What is timed is
the strategy's whole run, without what it takes to start the engine. Prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
from flwr.app import (
    ArrayRecord,
    ConfigRecordValues,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

CLIENTS, ROUNDS = 100, 10
ONE_CORE_A_CLIENT: dict[str, dict[str, ConfigRecordValues]] = {
    "client_resources": {"num_cpus": 1, "num_gpus": 0.0}
}

client = ClientApp()


@client.train()
def train(message: Message, context: Context) -> Message:  # noqa: ARG001  # what Flower calls
    """Send back the weights."""
    metrics = MetricRecord({"num-examples": 1.0})
    return Message(
        RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message
    )


def rounds(grid: Grid) -> float:
    """Return the seconds of all rounds; refuse a run in which a client failed."""
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=CLIENTS)
    began = time.perf_counter()
    result = strategy.start(
        grid=grid, initial_arrays=ArrayRecord([np.zeros(10, np.float32)]), num_rounds=ROUNDS
    )
    seconds = time.perf_counter() - began
    if len(result.train_metrics_clientapp) != ROUNDS:
        raise RuntimeError(f"{len(result.train_metrics_clientapp)} of {ROUNDS} rounds came through")
    return seconds


def with_ray() -> dict[str, float]:
    """Run it under Flower's simulation engine."""
    from flwr.simulation import run_simulation

    took: list[float] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001  # what Flower calls
        took.append(rounds(grid))

    run_simulation(server, client, num_supernodes=CLIENTS, backend_config=ONE_CORE_A_CLIENT)
    return {"seconds": took[0]}


def with_fedveil() -> dict[str, float]:
    """Run it on the in-process grid."""
    from fedveil.simulations.engines.sequential import SequentialEngine
    from fedveil.simulations.grid import InProcessGrid

    nodes: dict[int, dict[str, str | int | float | bool]] = {
        2 + partition: {"partition-id": partition, "num-partitions": CLIENTS}
        for partition in range(CLIENTS)
    }
    grid = InProcessGrid(SequentialEngine(client), nodes, 1)
    return {"seconds": rounds(grid)}


if __name__ == "__main__":
    print(json.dumps(with_ray() if sys.argv[1] == "ray" else with_fedveil()))
