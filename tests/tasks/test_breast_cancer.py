from __future__ import annotations

import re

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer

from fedveil.tasks.breast_cancer import BreastCancer
from fedveil.tasks.partition import PartitionSpec


def task() -> BreastCancer:
    return BreastCancer(seed=0, partition=PartitionSpec("iid"))


def test_sizes_and_classes() -> None:
    held = [part for client in range(5) for part in task().load(client, 5)]
    assert sum(len(part) for part in held) == BreastCancer.nominal_records == 455
    assert len(task().public_test()) == 114
    benign = sum(float(part.y.sum()) for part in [*held, task().public_test()])
    assert benign == 357
    assert held[0].y.dtype == torch.float32
    assert task().record_preprocessing_is_independent


def test_measures_are_scaled_by_the_printed_range() -> None:
    # The published table itself, read here from the description.
    printed = re.findall(
        r"^[a-z ]+ \((?:mean|standard error|worst)\): +([0-9.]+) +([0-9.]+)$",
        load_breast_cancer().DESCR,
        re.MULTILINE,
    )
    low, high = np.array(printed, dtype=float).T
    assert low.shape == (30,)
    raw = load_breast_cancer().data
    expected = np.sort(-1 + 2 * (raw - low) / (high - low), axis=0)
    parts = [*task().load(0, 1), task().public_test()]
    found = np.sort(np.vstack([part.x.numpy() for part in parts]), axis=0)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found).max() < 1.05
