"""The rotation against SciPy's Hadamard matrix, and its properties."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import hadamard

from fedveil.privacy.skellam.rotation import _signs, block_size, rotate, unrotate

dimensions = st.integers(1, 1500)
seeds = st.binary(min_size=1, max_size=40)


def vector_of(dimension: int, seed: bytes) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    entropy = int.from_bytes(hashlib.sha256(seed).digest())
    return np.random.default_rng(entropy).standard_normal(dimension)


@given(dimensions, seeds)
def test_lengths_and_angles_stay(dimension: int, seed: bytes) -> None:
    one, two = vector_of(dimension, seed + b"1"), vector_of(dimension, seed + b"2")
    scale = np.linalg.norm(one) * np.linalg.norm(two)
    turned = rotate(one, seed) @ rotate(two, seed)
    assert abs(turned - one @ two) <= 1e-13 * scale


@given(dimensions, seeds)
def test_what_was_rotated_comes_back(dimension: int, seed: bytes) -> None:
    vector = vector_of(dimension, seed)
    before = vector.copy()
    rotated = rotate(vector, seed)
    assert rotated.shape == (dimension,)
    back = unrotate(rotated, seed)
    assert np.linalg.norm(back - vector) <= 1e-14 * np.linalg.norm(vector)
    assert np.array_equal(vector, before)
    assert np.array_equal(rotated, rotate(vector, seed))


@pytest.mark.parametrize("dimension", [1, 2, 3, 5, 8, 13, 64, 100, 255])
def test_it_is_the_product_that_it_says(dimension: int) -> None:
    seed, size = b"matrix", block_size(dimension)
    blocks = np.eye(dimension)
    for start in range(0, dimension - size + 1, size):
        blocks[start : start + size, start : start + size] = hadamard(size) / math.sqrt(size)
    reversal = np.eye(dimension)[::-1]
    first, second = (np.diag(signs) for signs in _signs(dimension, seed))
    matrix = blocks @ second @ reversal @ blocks @ first @ reversal
    vector = vector_of(dimension, seed)
    assert rotate(vector, seed) == pytest.approx(matrix @ vector, abs=1e-12)
    assert matrix @ matrix.T == pytest.approx(np.eye(dimension), abs=1e-12)


@pytest.mark.parametrize("dimension", [13, 48, 200, 2**16 + 3])
def test_each_coordinate_is_spread_over_a_block_at_least(dimension: int) -> None:
    size = block_size(dimension)
    assert size <= dimension < 2 * size or size == 2**16
    for place in {0, dimension // 3, dimension - 1}:
        vector = np.zeros(dimension)
        vector[place] = 1.0
        squares = np.mean([rotate(vector, b"%d" % i) ** 2 for i in range(400)], axis=0)
        # The mean over signs is at most the variance proxy; 400 seeds leave some error.
        assert squares.max() <= (1.0 + 0.6) / size


def test_signs_follow_the_seed_and_are_even() -> None:
    one, two = _signs(100_000, b"a")
    (other, _) = _signs(100_000, b"b")
    for signs in (one, two, other):
        assert set(np.unique(signs)) == {-1.0, 1.0}
        assert abs(signs.mean()) < 4.5 / math.sqrt(100_000)
    assert abs(np.mean(one * two)) < 4.5 / math.sqrt(100_000)
    assert abs(np.mean(one * other)) < 4.5 / math.sqrt(100_000)


def test_all_parties_of_all_versions_rotate_alike() -> None:
    rotated = rotate(np.arange(11, dtype=np.float64), bytes(range(32)))
    assert np.round(rotated, 6).tolist() == [
        *(6.146447, -7.56066, 2.56066, 6.853553, -6.853553, 5.43934),
        *(-0.43934, -6.146447, -4.242641, -8.485281, -5.656854),
    ]
