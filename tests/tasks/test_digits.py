from __future__ import annotations

import torch

from fedveil.tasks.digits import Digits
from fedveil.tasks.partition import PartitionSpec


def test_digits_are_images_in_the_unit_interval() -> None:
    task = Digits(seed=0, partition=PartitionSpec("iid"))
    train, _ = task.load(0, 10)
    assert (train.x.dtype, train.y.dtype) == (torch.float32, torch.int64)
    assert train.x.shape[1:] == (64,)
    assert (float(train.x.min()), float(train.x.max())) == (0.0, 1.0)
    assert len(task.public_test()) == 360
    assert task.record_preprocessing_is_independent
    assert task.data_files == {}


def test_a_linear_model_learns_digits() -> None:
    torch.manual_seed(0)
    task = Digits(seed=0, partition=PartitionSpec("iid"))
    model, (train, _), test = task.model(), task.load(0, 1), task.public_test()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(100):
        optimizer.zero_grad()
        task.loss(model(train.x), train.y).backward()  # type: ignore[no-untyped-call]  # torch
        optimizer.step()
    assert task.metrics(model(test.x), test.y)["accuracy"] > 0.93
