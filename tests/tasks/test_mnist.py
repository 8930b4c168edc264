from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fedveil.tasks.errors import TaskError
from fedveil.tasks.mnist import FashionMnist, Mnist
from fedveil.tasks.partition import PartitionSpec

DataDir = Callable[[str], Path]


def test_natural_clients_are_the_539_writers(data_dir: DataDir) -> None:
    directory = data_dir("mnist")
    everything = {"client_test_fraction": 0}
    task = Mnist(seed=0, partition=PartitionSpec("natural"), data_dir=directory, options=everything)
    counts = np.bincount(np.load(directory / "mnist_writers.npz")["writer_train"])
    writers, counts = np.flatnonzero(counts), counts[counts > 0]
    assert [len(task.load(client, 539)[0]) for client in range(539)] == counts.tolist()
    # One writer's images themselves.
    chosen = np.load(directory / "mnist_writers.npz")["writer_train"] == writers[17]
    with np.load(directory / "mnist.npz") as archive:
        pixels, labels = archive["x_train"][chosen], archive["y_train"][chosen]
    train, test = task.load(17, 539)
    np.testing.assert_array_equal((train.x * 255).round().numpy()[:, 0], pixels)
    np.testing.assert_array_equal(train.y, labels)
    assert len(test) == 0
    with pytest.raises(TaskError, match="540 clients cannot share 539 natural groups"):
        task.load(0, 540)


def test_the_published_test_images_are_the_public_test(data_dir: DataDir, tmp_path: Path) -> None:
    directory = data_dir("mnist")
    # Without the file of writers, which only the scheme natural needs.
    (tmp_path / "mnist.npz").symlink_to(directory / "mnist.npz")
    task = Mnist(seed=0, partition=PartitionSpec("iid"), data_dir=tmp_path)
    test = task.public_test()
    assert test.x.shape == (10_000, 1, 28, 28)
    assert (test.x.dtype, test.y.dtype) == (torch.float32, torch.int64)
    assert (float(test.x.min()), float(test.x.max())) == (0.0, 1.0)
    assert torch.bincount(test.y).tolist() == [
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]
    own = task.load(2, 60)
    assert (len(own[0]), len(own[1])) == (900, 100)
    natural = Mnist(seed=0, partition=PartitionSpec("natural"), data_dir=tmp_path)
    with pytest.raises(TaskError, match=r"mnist_writers\.npz, which does not exist"):
        natural.load(0, 539)


def test_a_changed_pixel_is_refused(data_dir: DataDir, tmp_path: Path) -> None:
    with np.load(data_dir("mnist") / "mnist.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["x_test"][9_999, 14, 14] ^= 1
    np.savez(tmp_path / "mnist.npz", **arrays)
    with pytest.raises(TaskError, match=r"mnist\.npz is not the published file: sha256 of its"):
        Mnist(seed=0, partition=PartitionSpec("iid"), data_dir=tmp_path).load(0, 2)


def test_fashion_mnist_has_its_classes_in_equal_numbers(data_dir: DataDir) -> None:
    task = FashionMnist(
        seed=0, partition=PartitionSpec("dirichlet"), data_dir=data_dir("fashion_mnist")
    )
    assert torch.bincount(task.public_test().y).tolist() == [1000] * 10
    held = torch.cat([part.y for client in range(10) for part in task.load(client, 10)])
    assert torch.bincount(held).tolist() == [6000] * 10
    assert len(held) == FashionMnist.nominal_records


def test_fashion_mnist_has_no_natural_groups() -> None:
    with pytest.raises(TaskError, match="choose the partition scheme iid, dirichlet or shards"):
        FashionMnist(seed=0, partition=PartitionSpec("natural"))
