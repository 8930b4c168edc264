from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from fedveil.tasks.adult import Adult
from fedveil.tasks.partition import PartitionSpec

# First column of each block of one-hot levels, after the five numbers.
WORKCLASS, EDUCATION, MARITAL, OCCUPATION, RELATIONSHIP, RACE, SEX, COUNTRY, END = (
    *(5, 14, 30, 37, 52, 58, 63, 65, 107),
)


@pytest.fixture
def task(data_dir: Callable[[str], Path]) -> Adult:
    options = {"client_test_fraction": 0}
    directory = data_dir("adult")
    return Adult(seed=0, partition=PartitionSpec("iid"), data_dir=directory, options=options)


def test_counts_are_the_published_ones(task: Adult) -> None:
    train, _ = task.load(0, 1)
    test = task.public_test()
    assert (len(train), int(train.y.sum())) == (32_561, 7_841)
    assert (len(test), int(test.y.sum())) == (16_281, 3_846)
    assert Adult.nominal_records == len(train)
    # Levels in the order of adult.names: Female, Male; White, Asian, Indian, Other, Black.
    assert train.x[:, SEX:COUNTRY].sum(dim=0).tolist() == [10_771, 21_790]
    assert train.x[:, RACE:SEX].sum(dim=0).tolist() == [27_816, 1_039, 311, 271, 3_124]
    assert test.x[:, RACE:SEX].sum(dim=0).tolist() == [13_946, 480, 159, 135, 1_561]
    for part, rows in ((train, 2_399), (test, 1_221)):
        unknown = part.x[:, [EDUCATION - 1, RELATIONSHIP - 1, END - 1]]
        assert int((unknown.sum(dim=1) > 0).sum()) == rows


def test_every_block_has_one_level_and_numbers_lie_in_the_unit_interval(task: Adult) -> None:
    x = task.load(0, 1)[0].x
    assert x.shape == (32_561, END)
    bounds = [WORKCLASS, EDUCATION, MARITAL, OCCUPATION, RELATIONSHIP, RACE, SEX, COUNTRY, END]
    for start, stop in pairwise(bounds):
        assert bool((x[:, start:stop].sum(dim=1) == 1).all())
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)
    assert task.record_preprocessing_is_independent


def test_the_first_record(task: Adult) -> None:
    # 39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White,
    # Male, 2174, 0, 40, United-States, <=50K
    train, _ = task.load(0, 1)
    numbers = [22 / 73, 12 / 15, math.log(2175) / math.log(100_000), 0.0, 40 / 99]
    torch.testing.assert_close(train.x[0, :5], torch.tensor(numbers))
    hot = [WORKCLASS + 5, EDUCATION, MARITAL + 2, OCCUPATION + 8, RELATIONSHIP + 3, RACE, SEX + 1]
    assert (torch.nonzero(train.x[0, 5:]).flatten() + 5).tolist() == [*hot, COUNTRY]
    assert float(train.y[0]) == 0.0


def test_a_linear_model_beats_the_majority(task: Adult) -> None:
    torch.manual_seed(0)
    model, (train, _), test = task.model(), task.load(0, 1), task.public_test()
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0, momentum=0.9)
    for _ in range(100):
        optimizer.zero_grad()
        task.loss(model(train.x), train.y).backward()  # type: ignore[no-untyped-call]  # torch
        optimizer.step()
    found = task.metrics(model(test.x), test.y)
    assert found["accuracy"] > 0.83 > 12_435 / 16_281
    assert found["auc"] > 0.87
