"""Cohorts depend on the seed, the round and the set of clients alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedveil.strategies.cohort import choose_cohort


@given(
    st.sets(st.integers(0, 200), min_size=1, max_size=50),
    st.floats(0.01, 1.0),
    st.integers(0, 5),
    st.integers(1, 5),
    st.randoms(),
)
def test_order_of_arrival_does_not_matter(
    ids: set[int], fraction: float, seed: int, round_: int, rng: object
) -> None:
    clients = [f"client-{i}" for i in ids]
    shuffled = list(clients)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    arguments = {"fraction": fraction, "at_least": 1, "seed": seed, "round_": round_}
    cohort = choose_cohort(clients, **arguments)  # type: ignore[arg-type]
    assert cohort == choose_cohort(shuffled, **arguments)  # type: ignore[arg-type]
    assert len(set(cohort)) == len(cohort) == max(1, round(fraction * len(clients)))
    assert set(cohort) <= set(clients)


@pytest.mark.parametrize(("fraction", "least", "size"), [(0.1, 2, 2), (0.5, 2, 5), (0.1, 99, 10)])
def test_sizes(fraction: float, least: int, size: int) -> None:
    clients = [f"client-{i}" for i in range(10)]
    assert len(choose_cohort(clients, fraction=fraction, at_least=least, seed=0, round_=1)) == size


def test_every_client_has_its_turn() -> None:
    clients = [f"client-{i}" for i in range(10)]
    seen = {
        c
        for number in range(1, 60)
        for c in choose_cohort(clients, fraction=0.2, at_least=1, seed=1, round_=number)
    }
    assert seen == set(clients)
