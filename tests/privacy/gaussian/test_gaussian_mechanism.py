"""Gaussian noise on a grid: how much, on which grid, and that nothing beneath it shows."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedveil.privacy.gaussian.mechanism import GaussianError, GaussianMechanism
from fedveil.privacy.gaussian.sampler import GaussianLaw, Integers
from fedveil.privacy.randomness import SecureGenerator


class Silent(SecureGenerator):
    """A generator whose noise is nothing."""

    def gaussian(self, count: int, law: GaussianLaw) -> Integers:
        return np.zeros(count, dtype=law.dtype)


@given(st.floats(1e-3, 300.0), st.floats(1e-9, 1e9), st.integers(0, 10**9))
def test_the_noise_is_what_the_rounded_sum_needs(z: float, bound: float, dimension: int) -> None:
    mechanism = GaussianMechanism(z, bound, dimension)
    moved = bound / mechanism.grid + math.sqrt(dimension)
    continuous = math.sqrt((mechanism.std / mechanism.grid) ** 2 - 4.0)
    assert continuous / moved == pytest.approx(z, rel=1e-12)
    assert math.frexp(mechanism.grid)[0] == 0.5
    # Rounding costs a hundredth at most until the finer grid is needed, and then less.
    assert mechanism.std < 1.0102 * z * bound or z * math.sqrt(dimension) > 0.01 * 2.0**25


def test_rounding_costs_a_thousandth_for_a_small_model() -> None:
    assert GaussianMechanism(1.0, 1.0, 235_146).std == pytest.approx(1.0, rel=1e-3)
    assert GaussianMechanism(1.0, 1.0, 10**9).std == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dimension", [1, 40_000, 10**8])
def test_what_is_released_lies_on_the_grid(
    dtype: type[np.float32], dimension: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Mironov 2012: the gaps of an ordinary sum tell which values it can have come from.
    mechanism = GaussianMechanism(0.9, 0.7, dimension)
    values = np.full((1, 1000), math.pi / 3, dtype=dtype)
    mechanism._add(values, SecureGenerator().gaussian(1000, mechanism._law)[None])
    units = values.astype(np.float64) / mechanism.grid
    if dtype is np.float64 or np.abs(units).max() < 2**24:
        assert np.array_equal(units, np.rint(units))
    assert len(np.unique(values)) > 900


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(data=st.data())
def test_rounding_is_exact_and_moves_neighbours_no_farther_than_said(
    dtype: type[np.float32], data: st.DataObject
) -> None:
    dimension = 50
    scale = data.draw(st.floats(1e-3, 1e5))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    mechanism = GaussianMechanism(1.0, 1.0, dimension)
    one = (scale * generator.normal(size=(1, dimension))).astype(dtype)
    step = generator.normal(size=(1, dimension))
    other = (one + step / np.linalg.norm(step)).astype(dtype)
    apart = np.linalg.norm(one.astype(np.float64) - other)
    rounded = []
    for values in (one, other):
        released = values.copy()
        mechanism.add([released], [Silent()])
        expected = [round(x / mechanism.grid) for x in values[0].tolist()]
        assert released[0].tolist() == [k * mechanism.grid for k in expected]
        rounded.append(np.array(expected, dtype=np.float64))
    moved = np.linalg.norm(rounded[0] - rounded[1])
    assert moved <= apart / mechanism.grid + math.sqrt(dimension)


def test_a_float32_sum_is_the_rounded_value_of_the_exact_sum() -> None:
    # Twice rounded would depend on more than the sum, which is then no post-processing.
    mechanism = GaussianMechanism(1.0, 1.0, 1000)
    rng = np.random.default_rng(0)
    k = rng.integers(-(2**28), 2**28, 1000)
    values = (k * mechanism.grid).astype(np.float32)
    k = np.rint(values.astype(np.float64) / mechanism.grid).astype(np.int64)
    noise = SecureGenerator.from_seed("exact").gaussian(1000, mechanism._law)
    exact = k + noise.astype(np.int64)
    mechanism._add(values[None], noise[None])
    assert np.array_equal(values, (exact.astype(np.float64) * mechanism.grid).astype(np.float32))


def parts_of(vectors: NDArray[np.float32], *widths: int) -> list[NDArray[np.float32]]:
    return [
        np.ascontiguousarray(part) for part in np.split(vectors, np.cumsum(widths)[:-1], axis=1)
    ]


def test_how_values_lie_in_memory_changes_no_noise() -> None:
    dimension = 70_000
    mechanism = GaussianMechanism(1.0, 1.0, dimension)
    seeds = range(3)
    whole = np.zeros((3, dimension), dtype=np.float32)
    mechanism.add([whole], [SecureGenerator.from_seed("cut", i) for i in seeds])
    cut = parts_of(np.zeros_like(whole), 1, 40_000, 0, 29_999)
    mechanism.add(cut, [SecureGenerator.from_seed("cut", i) for i in seeds])
    assert np.array_equal(np.concatenate(cut, axis=1), whole)
    for seed in seeds:
        alone = np.zeros((1, dimension), dtype=np.float32)
        mechanism.add([alone], [SecureGenerator.from_seed("cut", seed)])
        assert np.array_equal(alone[0], whole[seed])


def test_short_vectors_of_many_are_noised_as_each_alone() -> None:
    mechanism = GaussianMechanism(2.0, 0.5, 100)
    many = np.zeros((1000, 100), dtype=np.float32)
    mechanism.add([many], [SecureGenerator.from_seed("short", i) for i in range(1000)])
    for i in (0, 326, 327, 328, 999):
        alone = np.zeros((1, 100), dtype=np.float32)
        mechanism.add([alone], [SecureGenerator.from_seed("short", i)])
        assert np.array_equal(alone[0], many[i])
    assert many.std() == pytest.approx(1.0, rel=0.02)


def test_a_generator_that_draws_otherwise_is_asked() -> None:
    values = np.zeros((2, 5), dtype=np.float32)
    GaussianMechanism(1.0, 1.0, 5).add([values], [SecureGenerator(), Silent()])
    assert values[0].all()
    assert not values[1].any()


def test_no_noise_leaves_values_as_they_are() -> None:
    values = np.full((1, 3), 0.1, dtype=np.float32)
    mechanism = GaussianMechanism(0.0, 1.0, 3)
    mechanism.add([values], [SecureGenerator()])
    assert (values == np.float32(0.1)).all()
    assert mechanism.std == mechanism.grid == 0.0


@pytest.mark.parametrize(
    ("z", "bound", "dimension", "says"),
    [
        (-1.0, 1.0, 1, "no noise has the multiplier"),
        (math.nan, 1.0, 1, "no noise has the multiplier"),
        (1.0, 0.0, 1, "no noise has the multiplier"),
        (1.0, math.inf, 1, "no noise has the multiplier"),
        (1e4, 1.0, 10**9, "needs a finer grid"),
        (1.0, 1e-35, 1, "beyond what float32"),
        (1.0, 1e38, 1, "beyond what float32"),
        (100.0, 1e308, 1, "beyond what float32"),
        (1e-200, 1e-200, 1, "beyond what float32"),
    ],
)
def test_noise_without_a_grid_is_refused(z: float, bound: float, dimension: int, says: str) -> None:
    with pytest.raises(GaussianError, match=says):
        GaussianMechanism(z, bound, dimension)


def test_noise_for_another_number_of_values_is_refused() -> None:
    with pytest.raises(GaussianError, match="noise for 3 values was to be put on 2"):
        GaussianMechanism(1.0, 1.0, 3).add([np.zeros((1, 2))], [SecureGenerator()])
