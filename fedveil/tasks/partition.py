"""Who holds which record: public simulations of IID, skewed and natural federations.

The draws are reproducible on purpose and protect nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fedveil.tasks.errors import TaskError

__all__ = ["PartitionSpec", "Scheme", "check_seed", "partition_indices", "split_off_test"]

Indices = NDArray[np.int64]
Scheme = Literal["iid", "dirichlet", "shards", "natural"]

# A Dirichlet draw that leaves a client with fewer records is drawn again.
_MIN_RECORDS = 10
_MAX_DRAWS = 100
# Independent streams of one user seed.
_PARTITION_STREAM, _SPLIT_STREAM = 1, 2


@dataclass(frozen=True)
class PartitionSpec:
    """How records are divided among clients.

    Parameters
    ----------
    scheme : {"iid", "dirichlet", "shards", "natural"}
        See `partition_indices`.
    alpha : float
        Concentration of the Dirichlet distribution, > 0; small is very skewed.
    shards_per_client : int
        Shards a client gets under "shards", >= 1.

    Raises
    ------
    TaskError
        If a value is not allowed.
    """

    scheme: Scheme
    alpha: float = 0.5
    shards_per_client: int = 2

    def __post_init__(self) -> None:
        if self.scheme not in get_args(Scheme):
            raise TaskError(
                f"unknown partition scheme {self.scheme!r}; choose {_either(get_args(Scheme))}"
            )
        if not (_is_real(self.alpha) and math.isfinite(self.alpha) and self.alpha > 0):
            raise TaskError(f"partition alpha must be a finite number above 0, not {self.alpha!r}")
        if not (_is_int(self.shards_per_client) and self.shards_per_client >= 1):
            raise TaskError(
                f"shards_per_client must be an integer of 1 or more, not {self.shards_per_client!r}"
            )


def partition_indices(
    spec: PartitionSpec,
    labels: NDArray[np.integer],
    num_partitions: int,
    seed: int,
    groups: NDArray[np.integer] | None = None,
) -> list[Indices]:
    """Divide records among clients: disjoint, complete, nobody empty.

    "iid" shuffles and cuts into equal parts. "dirichlet" gives the records of every label to
    the clients in proportions drawn from Dir(alpha) (Yurochkin et al. 2019; Hsu et al. 2019).
    As usual in that literature it draws again, at most 100 times, until every client has
    10 records, or an even share where that is less; then, if need be, records move one by one
    from the largest client to the smallest until every client has them. "shards" sorts by
    label, cuts into num_partitions * shards_per_client shards and deals them at random
    (McMahan et al. 2017, section 3). "natural" keeps groups whole: client i has the i-th group
    by ascending number when there are as many clients as groups, and fewer clients are dealt
    groups at random, their numbers of groups differing by at most one.

    Parameters
    ----------
    spec : PartitionSpec
        The scheme and its parameters.
    labels : ndarray of int, shape (n,)
        Class of every record.
    num_partitions : int
        Number of clients, 1 <= num_partitions <= n.
    seed : int
        >= 0. The result depends on the arguments alone.
    groups : ndarray of int, shape (n,), optional
        Group (hospital, writer, role) of every record.

    Returns
    -------
    list of ndarray of int64
        Ascending record numbers of each client.

    Raises
    ------
    TaskError
        If there are more clients than records, shards than records or clients than groups, or
        "natural" is asked for without groups.
    """
    check_seed(seed)
    if not _is_int(num_partitions) or num_partitions < 1:
        raise TaskError(f"the number of clients must be 1 or more, not {num_partitions!r}")
    if num_partitions > len(labels):
        raise TaskError(
            f"{num_partitions} clients cannot share {len(labels)} records;"
            f" lower the number of clients"
        )
    rng = np.random.default_rng([seed, _PARTITION_STREAM])
    match spec.scheme:
        case "iid":
            parts = np.array_split(rng.permutation(len(labels)), num_partitions)
        case "dirichlet":
            parts = _dirichlet(labels, num_partitions, spec.alpha, rng)
        case "shards":
            parts = _shards(labels, num_partitions, spec.shards_per_client, rng)
        case "natural":
            parts = _natural(groups, num_partitions, rng)
    return [np.sort(part).astype(np.int64, copy=False) for part in parts]


def split_off_test(
    indices: Indices, fraction: float, seed: int, partition: int
) -> tuple[Indices, Indices]:
    """Split one client's records into training and test.

    Parameters
    ----------
    indices : ndarray of int64, shape (n,)
        The client's records, n >= 1.
    fraction : float
        Share of the test records, 0 <= fraction < 1; floor(fraction * n) are taken, so that at
        least one record is left for training.
    seed : int
        >= 0, the same as for `partition_indices`.
    partition : int
        Index of the client, >= 0.

    Returns
    -------
    train, test : ndarray of int64
        Ascending record numbers.
    """
    rng = np.random.default_rng([seed, _SPLIT_STREAM, partition])
    shuffled = rng.permutation(indices)
    cut = math.floor(fraction * len(indices))
    return np.sort(shuffled[cut:]), np.sort(shuffled[:cut])


def check_seed(seed: int) -> None:
    """Raise `TaskError` unless the seed is an integer of 0 or more."""
    if not _is_int(seed) or seed < 0:
        raise TaskError(f"a seed must be an integer of 0 or more, not {seed!r}")


def _dirichlet(
    labels: NDArray[np.integer], num_partitions: int, alpha: float, rng: np.random.Generator
) -> list[Indices]:
    least = min(_MIN_RECORDS, len(labels) // num_partitions)
    for _ in range(_MAX_DRAWS):
        parts = _dirichlet_draw(labels, num_partitions, alpha, rng)
        if min(len(part) for part in parts) >= least:
            return parts
    return _fill_up(parts, least)


def _dirichlet_draw(
    labels: NDArray[np.integer], num_partitions: int, alpha: float, rng: np.random.Generator
) -> list[Indices]:
    pieces: list[list[Indices]] = [[] for _ in range(num_partitions)]
    for label in np.unique(labels):
        records = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(num_partitions, alpha))
        cuts = (np.cumsum(shares)[:-1] * len(records)).astype(np.int64)
        for piece, dealt in zip(pieces, np.split(records, cuts), strict=True):
            piece.append(dealt)
    return [np.concatenate(piece) for piece in pieces]


def _fill_up(parts: list[Indices], least: int) -> list[Indices]:
    # Ends, for num_partitions * least <= n: while somebody has less, somebody has more.
    lists = [part.tolist() for part in parts]
    while min(sizes := [len(records) for records in lists]) < least:
        lists[int(np.argmin(sizes))].append(lists[int(np.argmax(sizes))].pop())
    return [np.array(records, dtype=np.int64) for records in lists]


def _shards(
    labels: NDArray[np.integer], num_partitions: int, per_client: int, rng: np.random.Generator
) -> list[Indices]:
    total = num_partitions * per_client
    if total > len(labels):
        raise TaskError(
            f"{num_partitions} clients of {per_client} shards need {total} records and there are"
            f" {len(labels)}; lower shards_per_client or the number of clients"
        )
    shuffled = rng.permutation(len(labels))
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    shards = np.array_split(by_label, total)
    dealt = rng.permutation(total).reshape(num_partitions, per_client)
    return [np.concatenate([shards[shard] for shard in mine]) for mine in dealt]


def _natural(
    groups: NDArray[np.integer] | None, num_partitions: int, rng: np.random.Generator
) -> list[Indices]:
    if groups is None:
        raise TaskError(
            "the partition scheme natural needs records that come in groups, and these do not;"
            f" choose {_either(get_args(Scheme)[:-1])}"
        )
    names, group_of = np.unique(groups, return_inverse=True)
    if num_partitions > len(names):
        raise TaskError(
            f"{num_partitions} clients cannot share {len(names)} natural groups;"
            f" ask for {len(names)} clients or fewer"
        )
    client_of_group = np.arange(len(names))
    if num_partitions < len(names):
        client_of_group = rng.permutation(len(names)) % num_partitions
    client_of = client_of_group[group_of]
    by_client = np.argsort(client_of, kind="stable")
    sizes = np.bincount(client_of, minlength=num_partitions)
    return np.split(by_client, np.cumsum(sizes)[:-1])


def _either(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
