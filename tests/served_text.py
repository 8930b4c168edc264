"""A run of a task whose input is text."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import torch

from fedveil.server.records import RoundRecord
from fedveil.server.run_folder import NewRun, RunFolder
from fedveil.server.storage import default_spec
from fedveil.simulations.scenarios import find_scenario
from fedveil.tasks.partition import PartitionSpec
from fedveil.tasks.registry import create_task

WINDOW = 80
TEXTS = ("To be, or not to be, that is the question", "x" * 200 + "ab\ncd \u00e9\U0001d11e", "")


def codes(text: str) -> list[int]:
    """Return what a text is to the model, written without the service's own code."""
    known = {"\n": 1} | {chr(point): point - 30 for point in range(32, 127)}
    return [known.get(character, 0) for character in ("\n" * WINDOW + text)[-WINDOW:]]


def packed(texts: Sequence[str | bytes]) -> bytes:
    """Return strings as the binary extension has them."""
    encoded = [text.encode() if isinstance(text, str) else text for text in texts]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)


def text_run(path: Path) -> None:
    """Make a run of the next character whose weights are as they began."""
    torch.manual_seed(0)
    config = find_scenario("digits").config([("task.name", "shakespeare")])
    new = NewRun(run="text-run", kek=default_spec(), data_dir=None, public_test=True)
    folder = RunFolder.create(path, config, new)
    task = create_task("shakespeare", seed=0, partition=PartitionSpec("iid"))
    weights = {name: array.numpy() for name, array in task.model().state_dict().items()}
    record = RoundRecord(
        round=1, attempt=1, clients=10, failed=0, seconds=1.0, epsilon=1.0, test={"accuracy": 0.1}
    )
    folder.commit(record, weights, {})
