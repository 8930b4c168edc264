"""Rounding: unbiased, coupled as claimed, and within its bound whatever happens."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from fedveil.privacy.randomness import SecureGenerator
from fedveil.privacy.skellam import rounding
from fedveil.privacy.skellam.errors import VectorError
from fedveil.privacy.skellam.rounding import project, round_coupled, round_within, squared_norm

floats = st.floats(-1e9, 1e9, allow_subnormal=True)
vectors = st.integers(1, 60).flatmap(lambda d: arrays(np.float64, d, elements=floats))


class UpAlways(SecureGenerator):
    """A generator whose every uniform variate is 0."""

    def __init__(self) -> None:
        super().__init__(bytes(32))
        self.calls = 0

    def words(self, count: int) -> NDArray[np.uint64]:
        self.calls += 1
        return np.zeros(count, dtype=np.uint64)


@given(vectors, st.integers())
def test_each_coordinate_goes_to_a_neighbour(vector: NDArray[np.float64], seed: int) -> None:
    rounded = round_coupled(vector, SecureGenerator.from_seed(seed))
    assert rounded.dtype == np.int64
    assert np.all(np.abs(rounded - vector) < 1.0)
    whole = np.rint(vector)
    assert np.array_equal(round_coupled(whole, SecureGenerator.from_seed(seed)), whole)


@given(
    st.integers(1, 60).flatmap(
        lambda d: st.tuples(
            arrays(np.float64, d, elements=floats),
            arrays(np.float64, d, elements=st.floats(-50, 50)),
        )
    ),
    st.integers(),
)
def test_neighbours_rounded_alike_differ_by_less_than_one_more(
    pair: tuple[NDArray[np.float64], NDArray[np.float64]], seed: int
) -> None:
    vector, change = pair
    moved = vector + change
    one = round_coupled(vector, SecureGenerator.from_seed(seed))
    two = round_coupled(moved, SecureGenerator.from_seed(seed))
    change = moved - vector
    assert np.all(np.abs(two - one) <= np.ceil(np.abs(change)))
    assert np.linalg.norm(two - one) <= np.linalg.norm(change) + math.sqrt(len(vector)) + 1e-9


def test_a_fraction_below_the_precision_of_the_sum_still_counts() -> None:
    # 1e-20 + u is u in double precision; ceil(x - u) with u = 0 is 1 all the same.
    assert round_coupled(np.array([1e-20, -1e-20, 0.0]), UpAlways()).tolist() == [1, 0, 0]


@pytest.mark.parametrize("fraction", [0.001, 0.3, 0.5, 0.97])
def test_rounding_is_right_on_average(fraction: float) -> None:
    count = 300_000
    for whole in (-7.0, 0.0, 7.0):
        vector = np.full(count, whole + fraction)
        rounded = round_coupled(vector, SecureGenerator.from_seed("mean", str(fraction)))
        error = math.sqrt(fraction * (1 - fraction) / count)
        assert abs(rounded.mean() - vector[0]) < 4.5 * error


@given(st.integers(1, 400), st.floats(0.0, 300.0), st.integers())
def test_the_bound_holds_and_seldom_costs_the_fractions(
    dimension: int, norm: float, seed: int
) -> None:
    generator = SecureGenerator.from_seed(seed)
    vector = np.random.default_rng(seed % 2**32).normal(size=dimension)
    vector *= norm / np.linalg.norm(vector)
    bound = math.ceil(norm**2 + norm + dimension / 4 + math.sqrt(dimension) / 2)
    rounded = round_within(vector, bound, generator)
    assert sum(int(x) ** 2 for x in rounded) <= bound
    assert np.all(np.abs(rounded - vector) < 1.0)


def test_one_try_fits_with_the_odds_claimed() -> None:
    dimension, tries = 100, 2000
    # The worst case of the variance: every fraction is one half.
    vector = np.full(dimension, 2.5)
    norm = float(np.linalg.norm(vector))
    bound = norm**2 + norm + dimension / 4 + math.sqrt(dimension) / 2
    generator = SecureGenerator.from_seed("odds")
    fits = np.mean([squared_norm(round_coupled(vector, generator)) <= bound for _ in range(tries)])
    assert fits >= 1 - math.exp(-0.5)


def test_where_no_try_fits_it_is_rounded_towards_zero() -> None:
    generator = UpAlways()
    rounded = round_within(np.array([0.5, 0.5, -0.5, 3.9]), 10, generator)
    assert rounded.tolist() == [0, 0, 0, 3]
    assert generator.calls == rounding._TRIES


def test_a_vector_beyond_the_bound_is_refused() -> None:
    with pytest.raises(VectorError, match="squared norm 25 cannot be rounded to within 24"):
        round_within(np.array([3.0, 4.0]), 24, SecureGenerator())


@given(arrays(np.int64, st.integers(0, 20), elements=st.integers(-(2**61), 2**61)))
def test_squared_norms_are_exact_even_where_words_overflow(vector: NDArray[np.int64]) -> None:
    assert squared_norm(vector) == sum(int(x) ** 2 for x in vector)


@given(
    st.integers(1, 30).flatmap(
        lambda d: st.tuples(
            arrays(np.float64, d, elements=st.floats(-5, 5)),
            arrays(np.float64, d, elements=st.floats(-5, 5)),
        )
    ),
    st.floats(0.1, 10.0),
)
def test_projecting_moves_no_two_vectors_apart(
    pair: tuple[NDArray[np.float64], NDArray[np.float64]], radius: float
) -> None:
    one, two = pair
    apart = np.linalg.norm(project(one, radius) - project(two, radius))
    assert apart <= np.linalg.norm(one - two) + 1e-13
    for vector in pair:
        projected = project(vector, radius)
        assert np.linalg.norm(projected) <= radius * (1 + 1e-14)
        if np.linalg.norm(vector) <= radius * (1 - 1e-14):
            assert projected is vector


@pytest.mark.parametrize("size", [5e-324, 1e-200, 1e200, 1.7e308])
def test_projecting_neither_overflows_nor_vanishes(size: float) -> None:
    vector = np.array([size, 0.0, -size, size])
    assert np.linalg.norm(project(vector, 3.0)) == pytest.approx(min(3.0, size * math.sqrt(3)))
