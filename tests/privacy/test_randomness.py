"""The generator's variates against their laws, and its keystream against NIST's vectors."""

import ast
import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from fedveil.privacy import randomness
from fedveil.privacy.randomness import SecureGenerator, gaussians


def test_words_are_the_aes_256_ctr_keystream() -> None:
    # NIST CAVP, ECBVarKey256 style known answer: AES-256 of the zero block under the zero key.
    words = SecureGenerator(bytes(32)).words(2)
    assert words.astype("<u8").tobytes().hex() == "dc95c078a2408989ad48a21492842087"


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes, not 16"):
        SecureGenerator(bytes(16))


def test_fresh_generators_differ_and_seeded_ones_repeat() -> None:
    assert not np.array_equal(SecureGenerator().words(4), SecureGenerator().words(4))
    a, b = (SecureGenerator.from_seed("x", 1).words(4) for _ in range(2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, SecureGenerator.from_seed("x", 2).words(4))


def test_seed_parts_are_told_apart() -> None:
    first = SecureGenerator.from_seed("a", 1).words(1)
    assert first != SecureGenerator.from_seed("a", "1").words(1)
    assert first != SecureGenerator.from_seed("a1").words(1)


@pytest.mark.parametrize("std", [0.5, 3.0])
def test_gaussian_follows_the_normal_law(std: float) -> None:
    draws = SecureGenerator.from_seed("ks").gaussian(200_000, std)
    assert stats.kstest(draws, stats.norm(scale=std).cdf).pvalue > 1e-3
    assert draws.std() == pytest.approx(std, rel=0.01)
    assert stats.kurtosis(draws) == pytest.approx(0.0, abs=0.06)


def test_gaussian_variates_are_the_formulas_of_the_keystream() -> None:
    # More than two blocks of 8192, the last one short: each has four words a variate.
    count = 20_000
    words, plain = SecureGenerator(bytes(32)), []
    for here in (8192, 8192, count - 2 * 8192):
        one, two, three, four = (words.words(4 * here) >> np.uint64(11)).reshape(4, here) * 2.0**-53
        total = np.zeros(here)
        for radius, angle in ((one, two), (three, four)):
            size = np.sqrt(-2.0 * np.log1p(-radius))
            total += size * np.cos(2.0 * np.pi * angle) + size * np.sin(2.0 * np.pi * angle)
        plain.append(total * 1.5)
    drawn = SecureGenerator(bytes(32)).gaussian(count, 3.0)
    assert np.allclose(drawn, np.concatenate(plain), rtol=0.0, atol=1e-13)


def test_gaussian_variates_are_uncorrelated() -> None:
    draws = SecureGenerator.from_seed("corr").gaussian(200_000, 1.0)
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.01


@pytest.mark.parametrize("probability", [0.01, 0.25, 0.999])
def test_bernoulli_has_its_rate(probability: float) -> None:
    draws = SecureGenerator.from_seed("b", str(probability)).bernoulli(400_000, probability)
    assert stats.binomtest(int(draws.sum()), len(draws), probability).pvalue > 1e-3


def test_bernoulli_at_the_ends() -> None:
    generator = SecureGenerator()
    assert not generator.bernoulli(1000, 0.0).any()
    assert generator.bernoulli(1000, 1.0).all()
    with pytest.raises(ValueError, match=r"\[0, 1\], not 1.5"):
        generator.bernoulli(1, 1.5)


@given(st.integers(0, 300))
def test_permutation_holds_every_index_once(count: int) -> None:
    assert sorted(SecureGenerator().permutation(count)) == list(range(count))


def test_nothing_secret_comes_from_a_plain_generator() -> None:
    tree = ast.parse(inspect.getsource(randomness))
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    attributes = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    assert "random" not in imported | attributes


@given(st.integers(0, 40), st.sampled_from([0, 1, 31, 300, 5000, 9000]), st.floats(0.0, 5.0))
def test_gaussians_of_many_generators_are_those_that_each_draws_alone(
    many: int, count: int, std: float
) -> None:
    together, alone = (
        [SecureGenerator.from_seed("many", i) for i in range(many)] for _ in range(2)
    )
    for _ in range(2):
        drawn = gaussians(together, count, std)
        assert drawn.shape == (many, count)
        for row, one in zip(drawn, alone, strict=True):
            assert np.array_equal(row, one.gaussian(count, std))


def test_gaussians_ask_a_generator_that_draws_otherwise() -> None:
    class Zero(SecureGenerator):
        def gaussian(self, count: int, std: float) -> NDArray[np.float64]:
            return np.zeros(count)

    drawn = gaussians([SecureGenerator(), Zero()], 5, 1.0)
    assert drawn[0].all()
    assert not drawn[1].any()
