from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedveil.tasks.base import Examples
from fedveil.tasks.partition import PartitionSpec
from fedveil.tasks.shakespeare import Shakespeare


@pytest.fixture
def directory(data_dir: Callable[[str], Path]) -> Path:
    return data_dir("shakespeare")


def build(directory: Path, scheme: str = "natural", **options: float) -> Shakespeare:
    spec = PartitionSpec(scheme)  # type: ignore[arg-type]
    return Shakespeare(seed=0, partition=spec, data_dir=directory, options=options)


def texts(directory: Path) -> list[str]:
    """Return what each (play, role) says, by ascending play and role."""
    with gzip.open(directory / "shakespeare_speeches.jsonl.gz", "rt", encoding="utf-8") as lines:
        speeches = [json.loads(line) for line in lines]
    who = lambda speech: (speech["play"], speech["role"])  # noqa: E731
    return [
        "\n".join(speech["text"] for speech in role)
        for _, role in itertools.groupby(sorted(speeches, key=who), who)
    ]


def decode(examples: Examples) -> list[str]:
    codes = torch.hstack([examples.x, examples.y[:, None]])
    return ["".join("\n" if c == 1 else chr(c + 30) for c in row) for row in codes.tolist()]


def test_a_client_is_a_role_that_says_enough(directory: Path) -> None:
    everyone = texts(directory)
    assert len(everyone) == 1346
    roles = [text for text in everyone if len(text) >= 81]
    task = build(directory, client_test_fraction=0)
    held_out = 0
    for client, text in enumerate(roles):
        train, test = task.load(client, len(roles))
        pieces = [text[at : at + 81] for at in range(0, len(text) - 80, 81)]
        kept = len(pieces) - len(pieces) // 5
        assert decode(train) == pieces[:kept], client
        assert len(test) == 0
        held_out += len(pieces) - kept
    assert len(task.public_test()) == held_out


def test_every_record_is_dealt_out_once(directory: Path) -> None:
    task = build(directory, "iid")
    parts = [part for client in range(20) for part in task.load(client, 20)]
    assert sum(len(part) for part in parts) == Shakespeare.nominal_records
    assert parts[0].x.dtype == parts[0].y.dtype == torch.int64
    assert parts[0].x.shape[1] == 80
    codes = torch.cat([*(part.x for part in parts), task.public_test().x])
    # Every character of this edition is in the public alphabet.
    assert (int(codes.min()), int(codes.max())) == (1, 92)
    assert task.record_preprocessing_is_independent


def test_the_model_learns_the_next_character(directory: Path) -> None:
    torch.manual_seed(0)
    task = build(directory, "iid")
    model, (train, _), test = task.model(), task.load(0, 1), task.public_test()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.5)
    for rows in torch.randperm(len(train)).split(128):  # type: ignore[no-untyped-call]  # torch
        optimizer.zero_grad()
        task.loss(model(train.x[rows]), train.y[rows]).backward()  # type: ignore[no-untyped-call]  # torch
        optimizer.step()
    found = task.metrics(model(test.x), test.y)
    # What is reached by knowing how often each character comes, and not what comes before.
    shares = torch.bincount(train.y, minlength=97) / len(train)
    blind = float(-torch.log(shares[test.y].clamp_min(1e-6)).mean())
    assert blind == pytest.approx(3.17, abs=0.01)
    assert found["loss"] < 2.8
