from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedveil.tasks.errors import TaskError
from fedveil.tasks.partition import PartitionSpec, partition_indices, split_off_test

SPECS = st.builds(
    PartitionSpec,
    scheme=st.sampled_from(["iid", "dirichlet", "shards", "natural"]),
    alpha=st.sampled_from([1e-6, 0.05, 0.5, 10.0]),
    shards_per_client=st.integers(1, 3),
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[PartitionSpec, np.ndarray, int, int, np.ndarray]:
    spec = draw(SPECS)
    clients = draw(st.integers(1, 12))
    n = clients * 3 + draw(st.integers(0, 200))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    labels = rng.integers(0, draw(st.integers(1, 6)), n)
    # Twelve groups at least, each present.
    groups = rng.permutation(np.arange(n) % max(clients, min(n, draw(st.integers(1, 40))))) * 7
    return spec, labels, clients, draw(st.integers(0, 2**63)), groups


@given(cases())
def test_parts_are_disjoint_complete_sorted_and_never_empty(
    case: tuple[PartitionSpec, np.ndarray, int, int, np.ndarray],
) -> None:
    spec, labels, clients, seed, groups = case
    parts = partition_indices(spec, labels, clients, seed, groups)
    assert len(parts) == clients
    assert all(part.dtype == np.int64 and len(part) for part in parts)
    assert all((np.diff(part) > 0).all() for part in parts)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))


@given(cases())
def test_the_arguments_alone_decide(
    case: tuple[PartitionSpec, np.ndarray, int, int, np.ndarray],
) -> None:
    spec, labels, clients, seed, groups = case
    first = partition_indices(spec, labels, clients, seed, groups)
    np.random.default_rng().random(7)
    again = partition_indices(spec, labels.copy(), clients, seed, groups.copy())
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "shards"])
def test_another_seed_divides_otherwise(scheme: Literal["iid", "dirichlet", "shards"]) -> None:
    labels = np.arange(500) % 10
    one = partition_indices(PartitionSpec(scheme), labels, 5, 0)
    other = partition_indices(PartitionSpec(scheme), labels, 5, 1)
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@given(n=st.integers(1, 300), clients=st.integers(1, 40), seed=st.integers(0, 99))
def test_iid_parts_differ_by_one_record_at_most(n: int, clients: int, seed: int) -> None:
    clients = min(n, clients)
    sizes = [
        len(p) for p in partition_indices(PartitionSpec("iid"), np.zeros(n, int), clients, seed)
    ]
    assert max(sizes) - min(sizes) <= 1


@given(
    n=st.integers(1, 400),
    clients=st.integers(1, 30),
    alpha=st.sampled_from([1e-6, 0.1, 0.5]),
    seed=st.integers(0, 2**20),
)
def test_dirichlet_leaves_nobody_with_a_handful(
    n: int, clients: int, alpha: float, seed: int
) -> None:
    clients = min(n, clients)
    labels = np.arange(n) % 3
    parts = partition_indices(PartitionSpec("dirichlet", alpha=alpha), labels, clients, seed)
    assert min(len(part) for part in parts) >= min(10, n // clients)


def test_dirichlet_repairs_what_no_draw_can_give() -> None:
    # One label and almost no concentration: every draw gives all to one client.
    spec = PartitionSpec("dirichlet", alpha=1e-6)
    sizes = sorted(len(p) for p in partition_indices(spec, np.zeros(500, int), 20, 5))
    assert sizes == [10] * 19 + [310]


def test_dirichlet_is_skewed_by_label_as_alpha_says() -> None:
    labels = np.repeat(np.arange(10), 1000)

    def largest_share(alpha: float) -> float:
        parts = partition_indices(PartitionSpec("dirichlet", alpha=alpha), labels, 10, 0)
        shares = [np.bincount(labels[part], minlength=10) / 1000 for part in parts]
        return float(np.max(shares, axis=0).mean())

    # The mean of the largest of ten Dir(alpha) shares, by simulation outside the code.
    for alpha in (0.1, 0.5, 100.0):
        draws = np.random.default_rng(1).dirichlet(np.full(10, alpha), 4000).max(axis=1)
        spread = 4 * draws.std() / np.sqrt(10)
        assert abs(largest_share(alpha) - draws.mean()) < spread + 0.001


@given(clients=st.integers(1, 20), per_client=st.integers(1, 4), seed=st.integers(0, 2**20))
def test_a_client_gets_its_shards_of_sorted_labels(
    clients: int, per_client: int, seed: int
) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(10), 40))
    spec = PartitionSpec("shards", shards_per_client=per_client)
    parts = partition_indices(spec, labels, clients, seed)
    # A cut into s shards makes at most s + 10 - 1 runs of one label.
    kinds = sum(len(np.unique(labels[part])) for part in parts)
    assert kinds <= clients * per_client + 9
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= per_client


def test_two_shards_of_one_label_each() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 60))
    parts = partition_indices(PartitionSpec("shards"), labels, 10, 4)
    for part in parts:
        counts = np.bincount(labels[part], minlength=10)
        assert sorted(counts[counts > 0].tolist()) in ([30, 30], [60])
    assert len({tuple(np.unique(labels[part])) for part in parts}) > 1


def test_natural_is_one_group_a_client_by_ascending_number() -> None:
    groups = np.array([30, 10, 20, 10, 30, 30])
    parts = partition_indices(PartitionSpec("natural"), np.zeros(6, int), 3, 9, groups)
    assert [part.tolist() for part in parts] == [[1, 3], [2], [0, 4, 5]]


@given(groups=st.integers(1, 40), clients=st.integers(1, 40), seed=st.integers(0, 99))
def test_natural_deals_whole_groups_evenly(groups: int, clients: int, seed: int) -> None:
    clients = min(groups, clients)
    group_of = np.random.default_rng(seed).permutation(np.repeat(np.arange(groups), 5))
    spec = PartitionSpec("natural")
    parts = partition_indices(spec, np.zeros(len(group_of), int), clients, seed, group_of)
    held = [np.unique(group_of[part]) for part in parts]
    assert sorted(np.concatenate(held).tolist()) == list(range(groups))
    sizes = [len(h) for h in held]
    assert max(sizes) - min(sizes) <= 1


@given(
    n=st.integers(1, 200), fraction=st.floats(0, 0.99), seed=st.integers(0, 99),
    partition=st.integers(0, 50),
)  # fmt: skip
def test_split_off_test_divides_a_clients_records(
    n: int, fraction: float, seed: int, partition: int
) -> None:
    indices = np.arange(n) * 3 + 1
    train, test = split_off_test(indices, fraction, seed, partition)
    assert len(test) == int(n * fraction)
    assert len(train) >= 1
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), indices)
    again = split_off_test(indices, fraction, seed, partition)
    np.testing.assert_array_equal(test, again[1])


def test_clients_and_seeds_split_off_other_records() -> None:
    indices = np.arange(100)
    picks = [split_off_test(indices, 0.2, s, p)[1].tolist() for s, p in [(0, 0), (0, 1), (1, 0)]]
    assert picks[0] != picks[1]
    assert picks[0] != picks[2]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"scheme": "random"}, "'random'; choose iid, dirichlet, shards or natural"),
        ({"scheme": "dirichlet", "alpha": 0.0}, "alpha .* not 0.0"),
        ({"scheme": "dirichlet", "alpha": float("nan")}, "alpha .* not nan"),
        ({"scheme": "dirichlet", "alpha": float("inf")}, "alpha .* not inf"),
        ({"scheme": "dirichlet", "alpha": True}, "alpha .* not True"),
        ({"scheme": "shards", "shards_per_client": 0}, "shards_per_client .* not 0"),
        ({"scheme": "shards", "shards_per_client": 1.5}, "shards_per_client .* not 1.5"),
    ],
)
def test_a_spec_checks_itself(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        PartitionSpec(**kwargs)  # type: ignore[arg-type]


def test_what_cannot_be_divided_is_refused_with_the_numbers() -> None:
    labels = np.zeros(5, int)
    with pytest.raises(TaskError, match="6 clients cannot share 5 records"):
        partition_indices(PartitionSpec("iid"), labels, 6, 0)
    with pytest.raises(TaskError, match=r"3 clients of 2 shards need 6 records .* 5"):
        partition_indices(PartitionSpec("shards"), labels, 3, 0)
    with pytest.raises(TaskError, match="3 clients cannot share 2 natural groups"):
        partition_indices(PartitionSpec("natural"), labels, 3, 0, np.array([0, 0, 1, 1, 1]))
    with pytest.raises(TaskError, match="choose iid, dirichlet or shards"):
        partition_indices(PartitionSpec("natural"), labels, 3, 0)
    with pytest.raises(TaskError, match="clients must be 1 or more, not 0"):
        partition_indices(PartitionSpec("iid"), labels, 0, 0)
    for seed in (-1, True, 1.0):
        with pytest.raises(TaskError, match="seed must be an integer of 0 or more"):
            partition_indices(PartitionSpec("iid"), labels, 2, seed)  # type: ignore[arg-type]
