"""Runs of any built-in task whose weights are as they began."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from fedveil.server.records import RoundRecord
from fedveil.server.run_folder import NewRun, RunFolder
from fedveil.server.storage import default_spec
from fedveil.simulations.scenarios import find_scenario
from fedveil.tasks.options import OptionValue
from fedveil.tasks.partition import PartitionSpec
from fedveil.tasks.registry import create_task

DIRICHLET = PartitionSpec("dirichlet")


def fresh_run(
    path: Path,
    task: str,
    options: Mapping[str, OptionValue] | None = None,
    epsilon: float | None = 1.0,
) -> None:
    """Make a run of a task with one round."""
    torch.manual_seed(0)
    given = options or {}
    settings = [("task.name", task), *((f"task.options.{name}", v) for name, v in given.items())]
    config = find_scenario("digits").config(settings)
    new = NewRun(run=f"{task}-run", kek=default_spec(), data_dir=None, public_test=True)
    folder = RunFolder.create(path, config, new)
    model = create_task(task, seed=0, partition=DIRICHLET, options=given).model()
    record = RoundRecord(
        round=1,
        attempt=1,
        clients=10,
        failed=0,
        seconds=1.0,
        epsilon=epsilon,
        test={"accuracy": 0.5},
    )
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    folder.commit(record, arrays, {})
