from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from fedveil.tasks.base import Examples
from fedveil.tasks.digits import Digits
from fedveil.tasks.errors import TaskError
from fedveil.tasks.partition import PartitionSpec


def digits(seed: int = 0, scheme: str = "dirichlet", **options: float | str) -> Digits:
    return Digits(seed=seed, partition=PartitionSpec(scheme), options=options)  # type: ignore[arg-type]


def rows(*parts: Examples) -> list[tuple[float, ...]]:
    """Return the records as sortable tuples of pixels and label."""
    both = [torch.hstack([part.x, part.y[:, None]]) for part in parts]
    return sorted(tuple(row) for row in torch.vstack(both).tolist())


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "shards"])
def test_clients_and_the_public_test_share_every_record_out_once(scheme: str) -> None:
    task = digits(scheme=scheme)
    held = [part for client in range(10) for part in task.load(client, 10)]
    x, y = load_digits(return_X_y=True)
    everything = rows(Examples(torch.tensor(x / 16).float(), torch.tensor(y)))
    assert rows(*held, task.public_test()) == everything
    assert sum(len(part) for part in held) == Digits.nominal_records


def test_it_does_not_matter_in_which_order_clients_ask() -> None:
    forward, backward = digits(), digits()
    one = [forward.load(client, 7) for client in range(7)]
    other = [backward.load(client, 7) for client in reversed(range(7))][::-1]
    for (train, test), (train_too, test_too) in zip(one, other, strict=True):
        assert torch.equal(train.x, train_too.x)
        assert torch.equal(test.y, test_too.y)


def test_what_was_loaded_is_kept() -> None:
    task = digits()
    assert task.load(3, 10)[0] is task.load(3, 10)[0]
    assert task.public_test() is task.public_test()
    assert len(task.load(0, 1)[0]) > len(task.load(0, 2)[0])


def test_the_share_of_a_clients_test_examples_is_an_option() -> None:
    sizes = [(len(train), len(test)) for train, test in (digits().load(c, 10) for c in range(10))]
    assert all(test == (train + test) // 10 for train, test in sizes)
    train, test = digits(client_test_fraction=0).load(0, 10)
    assert (len(train), len(test)) == (sum(sizes[0]), 0)
    assert test.x.shape == (0, 64)
    fifth = digits(client_test_fraction=0.2).load(0, 10)[1]
    assert len(fifth) == sum(sizes[0]) // 5


def test_the_seed_moves_clients_records_and_never_the_public_test() -> None:
    one, other = digits(0), digits(1)
    assert rows(*one.load(0, 10)) != rows(*other.load(0, 10))
    assert torch.equal(one.public_test().x, other.public_test().x)
    assert torch.equal(one.public_test().y, digits(7, "shards").public_test().y)


@pytest.mark.parametrize(("client", "clients"), [(-1, 4), (4, 4)])
def test_a_client_that_does_not_exist_is_refused(client: int, clients: int) -> None:
    with pytest.raises(TaskError, match=f"client {client} of 4 does not exist; .* 0 to 3"):
        digits().load(client, clients)


def test_more_clients_than_records_are_refused() -> None:
    with pytest.raises(TaskError, match="1438 clients cannot share 1437 records"):
        digits(scheme="iid").load(0, 1438)


def test_the_public_test_is_stratified() -> None:
    _, y = load_digits(return_X_y=True)
    held_out = np.bincount(digits().public_test().y.numpy())
    assert np.abs(held_out - np.bincount(y) / 5).max() < 1
